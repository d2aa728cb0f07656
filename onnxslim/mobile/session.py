"""What an app should tell onnxruntime about the files, each with its reason: data with sources.

Sources: onnxruntime's documentation ("Thread management", "Graph optimizations", "ORT model format", the pages of the
execution providers) and its header onnxruntime_session_options_config_keys.h, which describes the entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxslim.targets import Target

CPU_TARGETS = ("arm-cpu", "web")
"""Those that run onnxruntime's own kernels, for which an .ort is optimized."""
_ALL = ("onnx", "ort")


@dataclass(frozen=True)
class Setting:
    """One option of a session; ``session.…`` are entries of its configuration."""

    name: str
    reason: str
    value: str | int | None = None
    """None where only the app can know."""
    files: tuple[str, ...] = _ALL
    """Kinds of files that it is for."""

    def as_json(self) -> dict[str, Any]:
        """Return what the manifest says."""
        known = {} if self.value is None else {"value": self.value}
        return {"name": self.name, **known, "files": list(self.files), "reason": self.reason}


@dataclass(frozen=True)
class Provider:
    """What an app registers before onnxruntime's own CPU kernels, which are always there."""

    name: str
    reason: str
    options: tuple[Setting, ...] = field(default=())


_SEQUENTIAL = Setting(
    "execution_mode", "the default; ORT_PARALLEL pays only where many long branches do not wait for each other",
    "ORT_SEQUENTIAL",
)  # fmt: skip
_ALL_LEVELS = Setting(
    "graph_optimization_level", "the default; at lower levels operators are not fused, and pairs of QuantizeLinear and "
    "DequantizeLinear are computed in float", "ORT_ENABLE_ALL", ("onnx",),
)  # fmt: skip
_NO_LEVELS = Setting(
    "graph_optimization_level", "what can be optimized for the CPU is so in the file: no level changes its kernels",
    "ORT_DISABLE_ALL", ("ort",),
)  # fmt: skip
_THREADS = Setting(
    "intra_op_num_threads", "known on the phone only: try 1, 2, and as many as it has large cores; with threads on "
    "small cores the large ones wait",
)  # fmt: skip
_NO_SPINNING = Setting(
    "session.intra_op.allow_spinning", "threads that wait busily between runs drain the battery; with 1 a run right "
    "after another is quicker", "0",
)  # fmt: skip
_ORT = (
    Setting(
        "session.load_model_format", "needed where the file's name does not end in .ort in the app", "ORT", ("ort",)
    ),
    Setting(
        "session.use_ort_model_bytes_directly", "where the app loads from memory, and keeps that memory as long as the "
        "session: no copy of the file is made", "1", ("ort",),
    ),
)  # fmt: skip

_XNNPACK_ALONE = Setting("intra_op_num_threads", "XNNPACK has threads of its own, which ours would disturb", 1)

PROVIDERS = {
    "xnnpack": Provider(
        "XNNPACK", "to be registered first; nodes that it does not take run on the CPU",
        (Setting("intra_op_num_threads", "as many as the phone has large cores; the default is 1"),),
    ),
    "nnapi": Provider(
        "NNAPI", "to be registered first; nodes that it does not take run on the CPU",
        (
            Setting(
                "NNAPI_FLAG_CPU_DISABLED", "Android's own CPU kernels may be slower than onnxruntime's; Android 10 "
                "and newer", 1,
            ),
        ),
    ),
    "coreml": Provider(
        "CoreML", "to be registered first; nodes that it does not take run on the CPU",
        (Setting("ModelFormat", "the default, NeuralNetwork, has fewer operators; iOS 15 and newer", "MLProgram"),),
    ),
    "qnn": Provider(
        "QNN", "to be registered first; nodes that it does not take run on the CPU",
        (Setting("backend_path", "the NPU; other backends compute elsewhere", "libQnnHtp.so"),),
    ),
    "web": Provider(
        "wasm", "the CPU's kernels in WebAssembly; more than one thread needs a page that is cross-origin isolated"
    ),
}  # fmt: skip
"""By target; arm-cpu needs none."""


def session_advice(target: Target, names: tuple[str, str], operators: tuple[Sequence[str], Sequence[str]]) -> Any:
    """Return the manifest's ``session``: options, the provider where there is one, and which file it can use best.

    Args:
        target: where the model will run.
        names: of the .onnx and the .ort.
        operators: of both, as ``operators_of`` names them.
    """
    provider = PROVIDERS.get(target.name)
    threads = _XNNPACK_ALONE if target.name == "xnnpack" else _THREADS
    levels = (_ALL_LEVELS, _NO_LEVELS) if target.name in CPU_TARGETS else (_ALL_LEVELS,)
    options = (_SEQUENTIAL, *levels, threads, _NO_SPINNING, *_ORT)
    load, reason = _file(target, names, operators)
    found: dict[str, Any] = {"load": load, "reason": reason, "options": [each.as_json() for each in options]}
    if provider is not None:
        settings = [{k: v for k, v in each.as_json().items() if k != "files"} for each in provider.options]
        found["provider"] = {"name": provider.name, "reason": provider.reason, "options": settings}
    return found


def _file(target: Target, names: tuple[str, str], operators: tuple[Sequence[str], Sequence[str]]) -> tuple[str, str]:
    """Return the file to load, and why: what was fused for the CPU is nothing that other providers know."""
    fused = sorted(set(operators[1]) - set(operators[0]))
    if target.name in CPU_TARGETS:
        return names[1], f"loads quicker, in smaller builds; {names[0]} computes the same in every full build"
    if not fused:
        return names[1], f"loads quicker, in smaller builds; its operators are those of {names[0]}"
    return names[0], f"{names[1]} has operators that were made for the CPU, and run there: {', '.join(fused)}"
