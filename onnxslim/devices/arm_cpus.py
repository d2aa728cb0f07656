"""ARM processors that the emulator stands in for: what kernels onnxruntime chooses on them.

onnxruntime asks Linux what the processor is and can do. The emulator tells what it can do; who made it is read from
``/proc/cpuinfo``, where an emulated program would find this machine's processor, and then dies or executes what the
emulated one has not got. So each processor has a file of its own there, and one core.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxslim.errors import DeviceError

_OLD = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
_DOTS = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"  # Armv8.2
_MATRICES = (
    f"{_DOTS} jscvt fcma sha3 sha512 asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg dcpodp flagm2 frint i8mm bf16"
)


@dataclass(frozen=True)
class Cpu:
    """One processor."""

    name: str
    """As ``--device arm:NAME`` spells it."""
    model: str
    """As the emulator's ``-cpu`` takes it."""
    part: int
    """The number of the design, from its maker's list: onnxruntime knows some by it."""
    variant: int
    features: str
    """As Linux lists them."""
    summary: str

    @property
    def cpuinfo(self) -> str:
        """Return what Linux would have in ``/proc/cpuinfo``, for one core."""
        lines = {
            "processor": "0",
            "BogoMIPS": "50.00",
            "Features": self.features,
            "CPU implementer": "0x41",
            "CPU architecture": "8",
            "CPU variant": f"0x{self.variant:x}",
            "CPU part": f"0x{self.part:x}",
            "CPU revision": "0",
        }
        return "".join(f"{key}\t: {value}\n" for key, value in lines.items()) + "\n"


CPUS = (
    Cpu("cortex-a76", "cortex-a76", 0xD0B, 4, _DOTS, "dot products: most phones since 2019"),
    Cpu("cortex-a53", "cortex-a53", 0xD03, 0, _OLD, "no dot products: old and cheap phones, small boards"),
    Cpu("i8mm", "max,sve=off,sme=off", 0xD4D, 0, _MATRICES, "products of 8-bit matrices: flagships since 2022"),
)
"""The first is what ``arm`` alone means."""


def cpu_named(name: str) -> Cpu:
    """Return the processor that ``--device arm:name`` means; the first for an empty name.

    Raises:
        DeviceError: there is none.
    """
    found = next((cpu for cpu in CPUS if cpu.name == (name or CPUS[0].name)), None)
    if found is None:
        raise DeviceError(f"no ARM processor {name!r}: choose arm:{', arm:'.join(cpu.name for cpu in CPUS)}")
    return found
