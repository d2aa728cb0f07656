"""Where a model came from, written into its metadata: enough to make it again, no time and no path."""

from __future__ import annotations

from onnxslim.ir import Model

PREFIX = "onnxslim."


def stamp(model: Model, *, version: str, spec: str, input_digest: str, plan_digest: str | None) -> None:
    """Write tool, version, pipeline and the SHA-256 of input and plan into ``model``'s metadata_props.

    What an earlier run wrote there is replaced: its model is the input whose digest is kept.
    """
    entries = {
        "tool": "onnxslim-mobile",
        "version": version,
        "spec": spec,
        "input_sha256": input_digest,
        "plan_sha256": plan_digest,
    }
    for key, value in entries.items():
        model.set_metadata(f"{PREFIX}{key}", value)


def provenance_of(model: Model) -> dict[str, str]:
    """Return what :func:`stamp` wrote, keys without their prefix."""
    return {k.removeprefix(PREFIX): v for k, v in model.metadata.items() if k.startswith(PREFIX)}
