"""The shipped models are what their manifest says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxslim.measure import MetricTracker
from onnxslim.runtime import Session
from onnxslim.samples import Samples

FOLDER = Path(__file__).resolve().parents[2] / "models"
MANIFEST = json.loads((FOLDER / "manifest.json").read_text())


def digest(name: str) -> str:
    return hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("entry", MANIFEST["models"], ids=lambda entry: entry["file"])
def test_a_model_is_as_described(entry: dict[str, Any]) -> None:
    path = FOLDER / entry["file"]
    assert digest(entry["file"]) == entry["sha256"]
    assert path.stat().st_size == entry["bytes"] <= 1_000_000
    onnx.checker.check_model(str(path), full_check=True)
    session = Session(path)
    tracker = MetricTracker("top1")
    for sample in Samples.from_path(FOLDER / "digits_eval.npz"):
        assert sample.label is not None
        tracker.add(session.run({"input": sample.feed["images"]}), sample.label)
    assert np.mean(tracker.values) == pytest.approx(entry["accuracy"], abs=0.001)
    assert entry["accuracy"] >= 0.97


def test_samples_are_as_described_and_apart() -> None:
    arrays = []
    for entry in MANIFEST["data"]:
        assert digest(entry["file"]) == entry["sha256"]
        with np.load(FOLDER / entry["file"], allow_pickle=False) as archive:
            assert len(archive["labels"]) == entry["samples"]
            arrays.append({image.tobytes() for image in archive["images"]})
    calibration, evaluation = arrays
    assert len(calibration & evaluation) <= 1  # two writers may have drawn the very same 8x8 digit
