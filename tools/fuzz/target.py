"""What is fuzzed: bytes → load → exact pipeline → save, and what was accepted computes the same as before."""

from __future__ import annotations

import contextlib
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnxslim.cli.main import main as command_line
from onnxslim.errors import PassError, UserError, one_line
from onnxslim.ir import Model
from onnxslim.measure import Comparison, within_exact_tolerance
from onnxslim.pipeline import exact_fixed_point
from onnxslim.runtime import Feed, Level, RuntimeRefusal, Session, SessionConfig
from onnxslim.samples import Samples
from onnxslim.workflow.registry import exact_passes

MOST_FED = 2**16
"""Elements of a feed above which a model is not run: its memory is its own wish."""

TOO_LARGE = "too large to run"

ACCEPTED, REFUSED = "accepted", "refused"


@dataclass(frozen=True)
class Outcome:
    """What became of one input. A kind other than accepted and refused is a finding."""

    kind: str
    detail: str

    @property
    def is_finding(self) -> bool:
        """Whether somebody must look at it."""
        return self.kind not in (ACCEPTED, REFUSED)


def run(data: bytes, folder: Path) -> Outcome:
    """Take ``data`` through the library; ``folder`` is where the result is saved."""
    try:
        return _library(data, folder)
    except UserError as error:
        return _refused(error)
    except MemoryError:
        return Outcome("over memory", "MemoryError")
    except Exception as error:  # what a user would see as an internal error
        return Outcome("internal", _named(error))


def _library(data: bytes, folder: Path) -> Outcome:
    original = Model.load(data)
    result = original.copy()
    failed = None
    try:
        exact_fixed_point(result, [cls() for cls in exact_passes()])
    except PassError as error:
        failed = one_line(error)
    saved = folder / "saved.onnx"
    result.save(saved)
    reread = Model.load(saved)
    feed = next(iter(Samples.synthetic(original.inputs, count=1))).feed
    if sum(math.prod(array.shape) for array in feed.values()) > MOST_FED:
        return Outcome(ACCEPTED, TOO_LARGE)
    try:
        expected = _outputs(original, feed)
    except RuntimeRefusal as error:
        return _refused(error)
    if failed is not None:
        return Outcome("pass failed", failed)
    return _compare(expected, reread, feed)


def _compare(expected: Feed, result: Model, feed: Feed) -> Outcome:
    try:
        comparison = Comparison()
        comparison.add(expected, _outputs(result, feed))
    except (RuntimeRefusal, UserError) as error:
        return Outcome("mismatch", _named(error))
    reason = within_exact_tolerance(comparison.result(), {name: _magnitude(value) for name, value in expected.items()})
    return Outcome(ACCEPTED, "") if reason is None else Outcome("mismatch", reason)


def _magnitude(value: Any) -> float:
    """Return the largest finite number of an output: rounding is measured by it where the output hardly varies."""
    array = np.asarray(value) if not isinstance(value, list) else np.zeros(0)
    if array.dtype.kind not in "fiu":
        return 0.0
    return float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0))


def _outputs(model: Model, feed: Feed) -> Feed:
    return Session(model.to_bytes(), SessionConfig(level=Level.NONE)).run(feed)


def run_command(data: bytes, folder: Path) -> Outcome:
    """Take ``data`` through ``onnxslim optimize``: 0, or 2 with one line and nothing written."""
    source, out = folder / "in.onnx", folder / "out.onnx"
    source.write_bytes(data)
    before = set(folder.iterdir())
    lines = io.StringIO()
    with contextlib.redirect_stderr(lines), contextlib.redirect_stdout(io.StringIO()):
        code = command_line(["optimize", str(source), "-o", str(out), "--no-bench", "--threads", "1"])
    written = set(folder.iterdir()) - before
    for path in written:
        path.unlink()
    if code == 0:
        return Outcome(ACCEPTED, "")
    complaint = lines.getvalue()
    if code != 2:
        return Outcome("internal", f"exit code {code}: {complaint.strip()[:300]}")
    if complaint.count("\n") != 1:
        return Outcome("internal", f"{complaint.count(chr(10))} lines on stderr: {complaint[:300]!r}")
    if written:
        return Outcome("wrote on refusal", ", ".join(path.name for path in written))
    return Outcome(REFUSED, reason_class(complaint.replace(str(source), "FILE")))


def _refused(error: Exception) -> Outcome:
    return Outcome(REFUSED, reason_class(one_line(error)))


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def reason_class(message: str) -> str:
    """Return a complaint without names and numbers, so that like ones are counted together."""
    message = re.sub(r"^(onnxslim: )?(the given bytes|FILE):? ", "", message.strip())
    message = re.sub(r"\[ONNXRuntimeError\] : \d+ : (\w+) : .*", r"onnxruntime: \1", message)
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "_", message)
    message = re.sub(r"(?<=: )\w+ (?=_)|\bnode \(\w*\)", "", message)
    return re.sub(r"-?\d+", "N", message)[:64]
