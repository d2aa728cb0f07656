"""Time per node from onnxruntime's own profiler, by the names of the model that was given.

onnxruntime renames what it rewrites: ``_token_N``, ``_nchwc`` and ``/duplicated`` are its suffixes, ``fused`` a prefix.
Every node of a temporary copy is named after its first output before profiling, so that rows are anchors; what is no
anchor was put there by the runtime.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxslim.runtime.sessions import Feed, ModelData, Session, SessionConfig, load_proto

_ADDED = re.compile(r"^fused |(_nchwc|_nhwc|/duplicated|_token_\d+|_kernel_time)+$")


@dataclass(frozen=True)
class NodeTime:
    """Median time of one node in microseconds; ``anchor`` is None for what the runtime put there itself."""

    name: str
    anchor: str | None
    op: str
    microseconds: float


def profile(model: ModelData, feed: Feed, runs: int = 10, threads: int = 1) -> tuple[NodeTime, ...]:
    """Run ``model`` under the profiler and return its nodes' times in order of execution."""
    proto = load_proto(model)
    anchors = name_by_anchor(proto.graph)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(proto, SessionConfig(threads, profile_prefix=str(Path(folder) / "profile")))
        for _ in range(runs + 2):
            session.run(feed)
        events = json.loads(session.end_profiling().read_text())
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            name = str(event["name"]).removesuffix("_kernel_time")
            times.setdefault((name, str(event["args"]["op_name"])), []).append(float(event["dur"]))
    return tuple(
        NodeTime(name, _anchor_of(name, anchors), op, statistics.median(durations[2:] or durations))
        for (name, op), durations in times.items()
    )


def name_by_anchor(graph: onnx.GraphProto) -> set[str]:
    """Name every node of the main graph after its first output; return these names."""
    anchors = set()
    for node in graph.node:
        node.name = next((output for output in node.output if output), node.name)
        anchors.add(node.name)
    return anchors


def _anchor_of(name: str, anchors: set[str]) -> str | None:
    """Undo onnxruntime's renaming."""
    if name in anchors:
        return name
    stripped = plain_name(name)
    return stripped if stripped in anchors else None


def plain_name(name: str) -> str:
    """Return a node's name without what onnxruntime adds when it changes layouts or fuses an activation."""
    return _ADDED.sub("", name)
