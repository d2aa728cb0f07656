"""The whole way from files to top-1 on real models, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from onnxslim.runtime import Session
from onnxslim.samples import InputSpec, Samples

ZOO = os.environ.get("ONNXSLIM_ZOO")
CIFAR = "scale=1/255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="set ONNXSLIM_ZOO to the folder of real models")
@pytest.mark.parametrize(
    ("model", "data", "preprocess", "limit", "top1"),
    [
        ("efficientnet_lite0.onnx", "imagenet/val", "resize=256,crop=224,mean=127,std=128", None, 0.883),
        ("resnet20_cifar10.onnx", "cifar10/val.npz", CIFAR, 1000, 0.809),
    ],
)
def test_top1(model: str, data: str, preprocess: str, limit: int | None, top1: float) -> None:
    zoo = Path(str(ZOO))
    session = Session(zoo / model)
    spec = InputSpec(session.input_names[0], np.dtype(np.float32), (None, 3, None, None))
    samples = Samples.from_path(zoo / data, preprocess=preprocess, limit=limit).for_inputs([spec])
    outputs = ((session.run(sample.feed), sample.label) for sample in samples)
    hits = [int(np.argmax(next(iter(found.values())))) == label for found, label in outputs]
    assert np.mean(hits) == pytest.approx(top1, abs=0.01)
