"""The shipped models and samples are what ``models/manifest.json`` says, and good enough to test an optimizer on."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "models"
MANIFEST: dict[str, list[dict[str, Any]]] = json.loads((FOLDER / "manifest.json").read_text())
MODELS = {entry["file"]: entry for entry in MANIFEST["models"]}
DATA = {entry["file"]: entry for entry in MANIFEST["data"]}
SIZE_LIMIT = {".onnx": 1_000_000, ".npz": 2_000_000}
LEAST_ACCURACY = 0.97

# What makes each network the shape it is named after, as a raw export shows it.
SHAPE = {
    "vgg.onnx": {"Conv": 3, "BatchNormalization": 3, "MaxPool": 3, "Flatten": 1, "Gemm": 3},
    "nin.onnx": {"Conv": 12, "BatchNormalization": 12, "MaxPool": 3, "GlobalAveragePool": 1},
    "inception.onnx": {"Conv": 19, "BatchNormalization": 19, "Concat": 3},
    "resnet.onnx": {"Conv": 11, "BatchNormalization": 11, "Add": 4},
    "mobilenet.onnx": {"Conv": 20, "BatchNormalization": 20, "Add": 3, "Clip": 14},
}


def samples(name: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    with np.load(FOLDER / name, allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def test_the_manifest_lists_exactly_the_files_in_the_folder() -> None:
    listed = sorted([*MODELS, *DATA])
    assert listed == sorted(path.name for path in FOLDER.iterdir() if path.suffix in SIZE_LIMIT)
    assert set(MODELS) == set(SHAPE)


@pytest.mark.parametrize("name", [*MODELS, *DATA])
def test_a_file_is_the_one_the_manifest_describes(name: str) -> None:
    entry = (MODELS | DATA)[name]
    content = (FOLDER / name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert len(content) == entry["bytes"] <= SIZE_LIMIT[Path(name).suffix]
    assert entry["licence"]


def test_the_readme_shows_the_figures_of_the_manifest() -> None:
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    for name, entry in MODELS.items():
        figures = f"{entry['parameters']:,} | {entry['bytes'] / 1000:.0f} | {100 * entry['accuracy']:.2f} %"
        assert f"| `{name}` | {entry['what']} | {figures} |" in lines


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_a_valid_raw_export(name: str) -> None:
    model = onnx.load(FOLDER / name)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    assert signature(model.graph.input) == [("input", onnx.TensorProto.FLOAT, ["batch", 1, 32, 32])]
    assert signature(model.graph.output) == [("logits", onnx.TensorProto.FLOAT, ["batch", 10])]
    assert SHAPE[name].items() <= Counter(node.op_type for node in model.graph.node).items()
    weights = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert sum(map(math.prod, weights.values())) == MODELS[name]["parameters"]
    widths = {weights[node.input[1]][0] for node in model.graph.node if node.op_type == "Conv"} - {10}
    assert all(width % 8 == 0 for width in widths)


def signature(values: Any) -> list[tuple[str, int, list[str | int]]]:
    types = [(value.name, value.type.tensor_type) for value in values]
    return [(name, kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim]) for name, kind in types]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reaches_its_accuracy_one_sample_at_a_time_and_in_a_batch(name: str) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(FOLDER / name, options, providers=["CPUExecutionProvider"])
    images, labels = samples("digits_eval.npz")
    (batched,) = session.run(["logits"], {"input": images})
    single = np.concatenate([session.run(["logits"], {"input": image[None]})[0] for image in images])
    for logits in (batched, single):
        accuracy = float((logits.argmax(1) == labels).mean())
        assert accuracy == pytest.approx(MODELS[name]["accuracy"], abs=0.001)
    assert MODELS[name]["accuracy"] >= LEAST_ACCURACY


@pytest.mark.parametrize("name", DATA)
def test_samples_have_the_form_that_the_commands_take(name: str) -> None:
    images, labels = samples(name)
    count = DATA[name]["count"]
    assert images.shape == (count, 1, 32, 32)
    assert images.dtype == np.float32
    assert labels.shape == (count,)
    assert labels.dtype == np.int64
    assert images.min() == 0
    assert images.max() == 1
    # Shuffled: every class is there among the first few, not only in the whole.
    assert set(labels[:60].tolist()) == set(range(10))


def test_no_image_is_there_twice_within_or_across_calibration_and_evaluation() -> None:
    images = [image.tobytes() for name in DATA for image in samples(name)[0]]
    assert len(set(images)) == len(images) == sum(entry["count"] for entry in DATA.values())
