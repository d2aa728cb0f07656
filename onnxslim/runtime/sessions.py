"""onnxruntime sessions with the settings this project cares about, and nothing else."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

from onnxslim.errors import OnnxslimError, one_line
from onnxslim.runtime.loops import PATIENT, loops_of, run_limited

Feed = dict[str, npt.NDArray[Any]]
"""One inference's inputs by name."""

ModelData = bytes | Path
"""A model as onnxruntime takes it: serialized, or the path of its file (always so above 2 GiB)."""

ort.set_default_logger_severity(4)  # fatal only: what matters comes back as an exception


class RuntimeRefusal(OnnxslimError):
    """onnxruntime does not load or run a model; the message is its own first line."""


class Level(enum.Enum):
    """How far onnxruntime rewrites the graph before running it."""

    NONE = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    BASIC = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    EXTENDED = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    """All but what changes the layout of tensors: fused and integer kernels, under the names of the model."""
    ALL = ort.GraphOptimizationLevel.ORT_ENABLE_ALL


class Reading(enum.Enum):
    """Which arithmetic executes an integer model. Floating-point models read the same in all three."""

    DEFINITION = "definition"
    """The operators as ONNX defines them: every QuantizeLinear and DequantizeLinear literally, in float."""
    ARM = "arm"
    """Integer kernels whose results are bit-identical to ARM's (no 16-bit saturation on x86)."""
    KERNELS = "kernels"
    """What onnxruntime does on this CPU by default."""


_READING_ENTRIES: dict[Reading, dict[str, str]] = {
    Reading.DEFINITION: {"session.disable_quant_qdq": "1"},
    Reading.ARM: {"session.x64quantprecision": "1"},
    Reading.KERNELS: {},
}


@dataclass(frozen=True)
class SessionConfig:
    """Settings of a session: ``threads`` 0 means one per core."""

    threads: int = 1
    level: Level = Level.ALL
    reading: Reading = Reading.KERNELS
    mapped: bool = False
    """Leave external weights where they are, mapped, and do not copy them into kernels' own layouts: slow and small."""
    spins: bool = True
    """Threads wait busily for the next node: quickest run after run, but in the way of whatever computes in between."""
    patience: float = PATIENT
    """Seconds that a run may take where a Loop or Scan could go on for ever."""
    profile_prefix: str | None = None
    """Where onnxruntime writes its profile, without the time and ``.json`` that it appends."""
    optimized_path: str | None = None
    """Where onnxruntime writes the graph that it runs."""


class Session:
    """A loaded model, ready to run on the CPU.

    Args:
        model: a ModelProto, or what :data:`ModelData` is.

    Raises:
        RuntimeRefusal: onnxruntime does not load it.
    """

    def __init__(self, model: ModelData | onnx.ModelProto, config: SessionConfig | None = None) -> None:
        config = config or SessionConfig()
        source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
        try:
            self._session = ort.InferenceSession(
                str(source) if isinstance(source, Path) else source,
                _options(config),
                providers=["CPUExecutionProvider"],
            )
        except Exception as error:  # onnxruntime raises a family of types that share only this base
            raise RuntimeRefusal(one_line(error)) from error
        self._loops = loops_of(source)
        self._patience = config.patience
        self._ended: Feed | None = None
        self.input_names: tuple[str, ...] = tuple(i.name for i in self._session.get_inputs())
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def run(self, feed: Feed, outputs: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the outputs by name: arrays, or lists for sequence types.

        Raises:
            RuntimeRefusal: the feed does not fit, a kernel fails, or a Loop goes on for too long.
        """
        names = list(self.output_names if outputs is None else outputs)
        if not names:  # onnxruntime would take an empty list for all outputs
            return {}
        try:
            values = self._run(names, feed)
        except Exception as error:  # as above
            raise RuntimeRefusal(one_line(error)) from error
        return dict(zip(names, values, strict=True))

    def _run(self, names: list[str], feed: Feed) -> Sequence[Any]:
        """Run, watched where a loop may not end; a feed on which it ended once is not watched again, to be timed."""
        if not self._loops or feed is self._ended:
            values: Sequence[Any] = self._session.run(names, feed)
            return values
        values = run_limited(self._session, names, feed, self._loops, self._patience)
        self._ended = feed
        return values

    def end_profiling(self) -> Path:
        """Stop profiling and return the profile's path."""
        return Path(self._session.end_profiling())


def _options(config: SessionConfig) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = config.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = config.level.value
    for key, value in _READING_ENTRIES[config.reading].items():
        options.add_session_config_entry(key, value)
    if config.threads == 1 or not config.spins:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if config.mapped:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_cpu_mem_arena = False
    if config.profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = config.profile_prefix
    if config.optimized_path is not None:
        options.optimized_model_filepath = config.optimized_path
    return options


def load_proto(model: ModelData) -> onnx.ModelProto:
    """Return ``model`` as a ModelProto, with its weights."""
    return onnx.load_model(str(model)) if isinstance(model, Path) else onnx.load_model_from_string(model)


def with_outputs(proto: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a copy of ``proto`` that returns the inner tensors ``names`` too (taps)."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(proto)
    present = {value.name for value in tapped.graph.output}
    for name in names:
        if name not in present:
            tapped.graph.output.append(onnx.ValueInfoProto(name=name))
            present.add(name)
    return tapped


def version() -> str:
    """Return onnxruntime's version."""
    return str(ort.__version__)
