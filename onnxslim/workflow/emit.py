"""Writing what a run made: OUT, its report beside it, and with ``ort`` the mobile package."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxslim.errors import OutputError
from onnxslim.ir.loading import file_facts
from onnxslim.mobile import Manifest, emit_ort, write_manifest
from onnxslim.report import Report, check_report_path, write_report
from onnxslim.report.network import OrtFile
from onnxslim.targets import find_target
from onnxslim.workflow.optimizing import OptimizeResult


def check_outputs(source: Path, out: Path, reports: Sequence[Path], others: Sequence[Path] = ()) -> None:
    """Refuse places that cannot be written, before any long work.

    Raises:
        OutputError: a folder that does not exist, OUT being IN, or a report of unknown kind.
    """
    for path in (out, *reports, *others):
        if not path.parent.is_dir():
            raise OutputError(f"no such folder: {path.parent}: make it, or write elsewhere")
        if path.is_dir():
            raise OutputError(f"{path} is a folder: name a file in it")
    if out.exists() and source.exists() and out.samefile(source):
        raise OutputError(f"{out} is the input itself: name another file to write")
    for path in reports:
        check_report_path(path)


@dataclass(frozen=True)
class Written:
    """What was written."""

    report: Report
    """With the paths of the files."""
    manifest: Manifest | None = None
    """Of the mobile package, where that was asked for."""


def write_result(result: OptimizeResult, out: Path, reports: Sequence[Path], *, ort_target: str | None) -> Written:
    """Write OUT, ``OUT.report.json`` beside it, the reports asked for, and the mobile package if asked for."""
    result.model.save(out)
    report, manifest = result.report, None
    if report.output is None:
        return Written(report)
    size, digest = file_facts(out)
    changes: dict[str, object] = {"path": str(out), "bytes": size, "sha256": digest}
    if ort_target is not None:
        target = find_target(ort_target)
        files = emit_ort(out, target, result.feed)
        changes["ort"] = OrtFile(path=str(files.ort), bytes=files.bytes)
        changes["operators"] = files.operators
        manifest = write_manifest(result.model, out, files, target)
    report = report.model_copy(update={"output": report.output.model_copy(update=changes)})
    for path in (out.with_suffix(".report.json"), *reports):
        write_report(report, path)
    return Written(report, manifest)
