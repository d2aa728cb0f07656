"""What a model adds to an app's download."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxslim
from onnxslim.mobile import download
from onnxslim.mobile.download import LIMIT, download_bytes

MODELS = Path(__file__).resolve().parents[2] / "models"


def test_it_is_what_zip_makes_of_the_file() -> None:
    path = MODELS / "vgg.onnx"
    data = path.read_bytes()
    expected = len(zlib.compress(data, 6))
    for given in (path, data):
        found = download_bytes(given)
        assert found is not None
        assert abs(found - expected) <= 64


def test_external_data_counts(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    found = download_bytes(path)
    assert found is not None
    assert found > 0.85 * weight.nbytes


def test_what_is_too_large_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "MOST", 10)
    assert download_bytes(b"0123456789") is not None
    assert download_bytes(b"0123456789a") is None


def test_reports_and_budgets_know_it() -> None:
    result = onnxslim.optimize(MODELS / "vgg.onnx", bench=False, download_limit="1KB")
    output = result.report.output
    assert output is not None
    assert output.download_bytes is not None
    assert 0 < output.download_bytes < output.bytes + 100
    (line,) = result.report.budget
    assert (line.name, line.observed, line.verdict.value) == ("download_limit", output.download_bytes, "missed")
    assert not any("Wi-Fi" in warning for warning in result.warnings)


def test_more_than_a_phone_downloads_unasked_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxslim.workflow import optimizing

    assert LIMIT == 200_000_000
    monkeypatch.setattr(optimizing, "LIMIT", 1000)
    result = onnxslim.optimize(MODELS / "vgg.onnx", bench=False)
    assert any("Wi-Fi" in warning for warning in result.warnings)
