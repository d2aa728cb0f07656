"""One row of a bench in a process of its own: optimize (or take) a model, judge it, print JSON.

Reads a JSON object from standard input: model, kind (cifar10 or imagenet; pages: images without labels), zoo, calibrate
(samples; 0 for none), spec (a pipeline, or null to judge ``candidate`` as it is), candidate, out, judge (images to
judge by; all unless given), time, exact (what is timed beside the result).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import onnxslim
from onnxslim import Model, Samples
from onnxslim.analysis import concrete_shapes, model_cost
from onnxslim.measure import RaceSettings, compare_latency
from onnxslim.runtime import Session, SessionConfig

PREPROCESS = {
    "cifar10": "scale=1/255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225",
    "imagenet": "resize=256,crop=224,mean=127,std=128",
    "pages": "resize=320x320,scale=1/255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225",
}
BATCH = 50
NUMERICS = 100
"""Images without labels that judge."""


def main() -> int:
    """Do what standard input says."""
    row = json.load(sys.stdin)
    calibration, evaluation = samples(Path(row["zoo"]), row["kind"], row["calibrate"])
    found: dict[str, Any] = {}
    candidate = row.get("candidate")
    if row["spec"] is not None:
        started = time.perf_counter()
        given = calibration if row["calibrate"] else None
        judges = evaluation.take(NUMERICS) if row["kind"] == "pages" else calibration.take(10)
        result = onnxslim.optimize(row["model"], given, eval_data=judges, passes=row["spec"], bench=False)
        found["seconds"] = time.perf_counter() - started
        asked = [record for record in result.report.passes if record.name in row["spec"]]
        found["refused"] = [record.reason for record in asked if record.reason]
        compared = result.report.validation
        found["sqnr_db"] = min((each.sqnr_db or 0.0 for each in compared.outputs), default=0.0) if compared else 0.0
        found["plans"] = [decision.plan for decision in result.plan.decisions]
        result.model.save(row["out"])
        found["rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        candidate = row["out"]
    feed = next(iter(evaluation.for_inputs(Model.load(row["model"]).inputs))).feed
    macs = [
        model_cost(model, concrete_shapes(model, feed)).macs or 0
        for model in map(Model.load, (row["model"], candidate))
    ]
    found["macs"] = macs[1] / macs[0]
    found["original"], found["size"] = (Path(path).stat().st_size for path in (row["model"], candidate))
    if row["kind"] != "pages":
        found["accuracy"] = accuracy(Path(candidate), evaluation.shuffled(0).take(row.get("judge", len(evaluation))))
    if row.get("time"):
        pair = [Path(path).read_bytes() for path in (row["exact"], candidate)]
        latency = compare_latency(pair, feed, RaceSettings(layers=False))[0]
        found["speedup"], found["interval"] = latency.speedup, latency.interval
    print(json.dumps(found))
    return 0


def samples(zoo: Path, kind: str, calibrate: int) -> tuple[Samples, Samples]:
    """Return samples to calibrate on, and labelled ones that did not calibrate to judge by."""
    given = PREPROCESS[kind]
    if kind == "cifar10":
        pair = [Samples.from_path(zoo / kind / f"{name}.npz", preprocess=given) for name in ("calib", "val")]
        return pair[0].shuffled(0).take(calibrate or 10), pair[1]
    calib, held = (Samples.from_path(zoo / "imagenet" / name, preprocess=given) for name in ("calib", "val"))
    return calib.shuffled(0).take(calibrate or 10), held


def accuracy(path: Path, evaluation: Samples) -> float:
    """Return top-1 in percent."""
    session = Session(path.read_bytes(), SessionConfig(0))
    bound = evaluation.for_inputs(Model.load(path).inputs)
    right = total = 0
    images: list[Any] = []
    labels: list[int] = []
    for index, sample in enumerate(bound, start=1):
        images.append(next(iter(sample.feed.values())))
        labels.append(int(sample.label or 0))
        if len(images) == BATCH or index == len(bound):
            scores = next(iter(session.run({session.input_names[0]: np.concatenate(images)}).values()))
            right += int((np.asarray(scores).argmax(axis=-1) == np.array(labels)).sum())
            total += len(labels)
            images, labels = [], []
    return 100 * right / total


if __name__ == "__main__":
    sys.exit(main())
