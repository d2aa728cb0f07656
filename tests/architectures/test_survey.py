"""How much of every architecture pruning reaches: at least as much as it once did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from onnxslim.ir import Model
from onnxslim.passes import EXACT_PASSES
from onnxslim.pipeline import exact_fixed_point
from tools.gallery import ARCHITECTURES, Builder
from tools.gallery.survey import ALONE, survey

ROOT = Path(__file__).resolve().parents[2]
MOST = 0.89
"""The share of filters that is reached unless said otherwise: all but those of the classifier."""
LESS = {
    "shufflenet-v1": 0.46,  # groups that are shuffled lose the same places, which couples them all
    "yolo": 0.8,  # boxes are distributions, and two levels are outputs
    "segmentation": 0.17,  # a Resize to computed sizes
    "spatial-attention": 0.46,  # statistics over channels
    "crnn-gru": 0.84,  # few filters, of which a tenth are classes
    "vit": 0.72,  # LayerNormalization takes statistics over the trunk, here and below
    "swin": 0.65,
    "convnext": 0.6,
    "captured": 0.59,  # a subgraph reads a quarter of the filters
}


def exact(name: str) -> Model:
    model = Model.load(ARCHITECTURES[name]())
    exact_fixed_point(model, [cls() for cls in EXACT_PASSES])
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pruning_reaches_no_less_than_it_did(name: str) -> None:
    found = survey(exact(name))
    assert found.share >= LESS.get(name, MOST)
    assert found.reasons, "at least the outputs stay"


def test_filters_are_counted_once_and_reasons_named() -> None:
    b = Builder(3, 16, 16)
    x = b.relu(b.conv(b.relu(b.conv(b.input, 8)), 1, 1))
    x = b.op("LRN", b.conv(x, 6), size=3)
    found = survey(Model.load(b.build(b.conv(x, 4))))
    assert (found.filters, found.reached, found.groups) == (8 + 1 + 6 + 4, 8, 4)
    assert found.reasons == {ALONE: 1, "LRN mixes it": 6, "it is an output of the model": 4}


def test_the_command_prints_a_row_for_each() -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench"), "prunable", str(ROOT / "models" / "nin.onnx")]
    done = subprocess.run([*command, "--only", "vit", "nin"], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["vit", "nin"]
    assert all(float(row[4]) <= 1e-5 for row in rows)
    assert subprocess.run([*command, "--only", "none"], capture_output=True, check=False).returncode == 1
