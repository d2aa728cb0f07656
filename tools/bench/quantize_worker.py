"""Our quantization, and the judge of everybody's, in a process of its own: a job as JSON on standard input, JSON out.

``task`` is one of:

- quantize: spec, model, calibration (``.npz``), out. Seconds are of loading the model, all passes and saving; our proof
  is not counted, since the peers have none.
- judge: model, evaluation (``.npz``), out (``.npz`` of all outputs): the model's outputs by the operators' definition.
- memory: spec, model, source, preprocess, count: the peak of a run that reads its samples as a stream.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()

import numpy as np  # noqa: E402  (imports are timed)

import onnxslim  # noqa: E402
from onnxslim import Model, Samples  # noqa: E402
from onnxslim.measure.race import peak_resident_bytes  # noqa: E402
from onnxslim.runtime import Reading, Session, SessionConfig  # noqa: E402

BATCH = 50
PROOF = 16
"""Samples that the product proves its passes on: it is to undo here what it would undo elsewhere. The judge has all."""


def main() -> int:
    """Do what standard input says."""
    job = json.load(sys.stdin)
    print(json.dumps(TASKS[job["task"]](job)))
    return 0


def quantize(job: dict[str, Any]) -> dict[str, float]:
    """Quantize as ``onnxslim optimize`` does."""
    _warm_up()
    imported = time.perf_counter()
    with np.load(job["calibration"], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "labels"}
    samples = Samples.from_arrays(arrays)
    loaded = time.perf_counter()
    seconds = _optimized(job, samples, len(samples))
    return {"imports": imported - STARTED, "loading": loaded - imported, "seconds": seconds, "gb": _peak_gb()}


def memory(job: dict[str, Any]) -> dict[str, float]:
    """Quantize on ``count`` samples of a folder or an ``.npz``, read one at a time."""
    source = Samples.from_path(job["source"], preprocess=job["preprocess"], limit=job["count"])
    seconds = _optimized(job, source, job["count"])
    return {"seconds": seconds, "gb": _peak_gb()}


def _warm_up() -> None:
    """Import what the product imports when it is first used."""
    import onnxslim.workflow.optimizing  # noqa: F401


def _optimized(job: dict[str, Any], samples: Samples, count: int) -> float:
    """Run the pipeline, save the result and return the seconds of what is not proof.

    Raises:
        SystemExit: a pass that was asked for was not kept. Exact ones that are undone are part of what is measured.
    """
    started = time.perf_counter()
    model = Model.load(job["model"])
    loaded = time.perf_counter()
    result = onnxslim.optimize(
        model, samples, eval_data=samples.take(PROOF), passes=job["spec"], calib_samples=count, bench=False
    )
    asked = {item.partition("{")[0] for item in job["spec"].split(",")}
    records = [record for record in result.report.passes if record.reason and record.name in asked]
    failed = [f"{record.name} was {record.status}: {record.reason}" for record in records]
    if failed:
        raise SystemExit("; ".join(failed))
    proven = time.perf_counter()
    result.model.save(job["out"])
    saved = time.perf_counter()
    return loaded - started + sum(record.seconds for record in result.report.passes) + saved - proven


def judge(job: dict[str, Any]) -> dict[str, int]:
    """Write every output of a model on all evaluation samples, by the operators' definition."""
    with np.load(job["evaluation"], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "labels"}
    session = Session(Path(job["model"]).read_bytes(), SessionConfig(1, reading=Reading.DEFINITION))
    count = len(next(iter(arrays.values())))
    step = BATCH if job["batched"] else 1
    starts = range(0, count, step)
    feeds = ({name: array[start : start + step] for name, array in arrays.items()} for start in starts)
    pieces: dict[str, list[Any]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a session of several threads spins, and delays its neighbours
        for found in pool.map(session.run, feeds):
            for name, value in found.items():
                pieces.setdefault(name, []).append(value)
    outputs = {f"o{index}": np.concatenate(values) for index, values in enumerate(pieces.values())}
    np.savez(job["out"], allow_pickle=False, **outputs)
    return {"samples": count}


def _peak_gb() -> float:
    return (peak_resident_bytes() or 0) / 1e9


TASKS = {"quantize": quantize, "judge": judge, "memory": memory}

if __name__ == "__main__":
    sys.exit(main())
