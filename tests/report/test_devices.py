"""Devices: how figures came about is said, counts are never times, layers are the original's."""

from __future__ import annotations

from typing import Any

import pytest

from onnxslim.report import Report, to_html, to_markdown
from onnxslim.report.device_story import device_layers, kind_shares, kind_words, layer_text, mostly_text, side_text
from onnxslim.report.evidence import DeviceReading, DeviceSide

Document = dict[str, Any]
SAYS = "arm:cortex-a53 says 2.90x where this machine says 1.90x: its kernels differ most in Conv"


@pytest.fixture
def measured(full_document: Document) -> Report:
    """A report with a counted device, one that was measured, and one that does not run the candidate."""
    stem = full_document["input"]["layers"][0]
    counted = {
        "name": "arm:cortex-a53",
        "kind": "emulated count",
        "facts": {"cpu": "cortex-a53"},
        "reference": {"instructions": 2_410_000_000, "sqnr_db": 140.0},
        "candidate": {"instructions": 830_000_000, "sqnr_db": 200.0},
        "speedup": 2.9,
        "disagrees": SAYS,
        "layers": [
            {
                "node": stem["anchor"],
                "op": "QLinearConv",
                "origin": stem["anchor"],
                "reference": 4 * stem["macs"],
                "candidate": stem["macs"],
                "kinds": {"dot": 600, "load": 300, "<b>": 100},
            },
            {"node": "ReorderOutput", "op": "ReorderOutput", "candidate": 7000, "kinds": {"load": 100}},
            {"node": "between the nodes", "op": "", "reference": 100, "candidate": 100},
        ],
    }
    phone = {
        "name": "android:1234",
        "kind": "measured",
        "reference": {"p50_ms": 30.0, "placed": {"NNAPI": 61, "CPU": 2}},
        "candidate": {"p50_ms": 12.0},
        "speedup": 2.5,
        "interval": [2.4, 2.6],
        "claim": "faster",
        "warnings": ["the phone was hot: 45 degrees"],
        "layers": [
            {
                "node": stem["anchor"],
                "op": "QLinearConv",
                "origin": stem["anchor"],
                "reference_us": 900.0,
                "candidate_us": 450.0,
            },
            {"node": "Reorder", "op": "Reorder", "candidate_us": 12.5},
        ],
    }
    npu = {"name": "qnn", "kind": "emulated", "reference": {"sqnr_db": 40.0}, "candidate": {"refused": "no <i>Pad</i>"}}
    full_document["latency"]["devices"] = [counted, phone, npu]
    return Report.model_validate(full_document)


@pytest.mark.parametrize("render", [to_html, to_markdown])
def test_all_is_said(render: Any, measured: Report) -> None:
    text = render(measured).replace("\N{NO-BREAK SPACE}", " ")
    said = ["emulated count: instructions, which are no times", "2.41 G", "830 M", "2.9\u00d7", SAYS, "cpu cortex-a53"]
    said += ["measured on the device: times", "30.0 ms", "12.0 ms", "2.40 to 2.60", "NNAPI 61, CPU 2", "45 degrees"]
    said += ["does not run there: no &lt;i&gt;Pad&lt;/i&gt;", "inserted by the runtime", "dot 60 %, load 30 %"]
    assert [figure for figure in said if figure not in text] == []
    assert "<b>" not in text.split("Layer by layer")[-1].split("</table>")[0]


def test_layers_have_instructions_for_each_mac(measured: Report) -> None:
    assert measured.latency is not None
    layers = device_layers(measured.latency.devices[0], measured.input, measured.output)
    assert [(layer.row.name, layer.before_per_mac, layer.after_per_mac) for layer in layers] == [
        ("stem/Relu6:0", 4.0, 1.0),
        ("ReorderOutput", None, None),
        ("between the nodes", None, None),
    ]
    assert layers[0].row.op == "Conv"


def test_layers_of_a_device_that_measures_have_times(measured: Report) -> None:
    assert measured.latency is not None
    phone = measured.latency.devices[1]
    layers = device_layers(phone, measured.input, measured.output)
    rows = [(one.row.name, layer_text(phone, one.row.before), layer_text(phone, one.row.after)) for one in layers]
    assert rows == [
        ("stem/Relu6:0", "900 \u00b5s", "450 \u00b5s"),
        ("Reorder", "", "12.5 \u00b5s"),
    ]
    assert layers[0].before_per_mac is None
    assert "900 \u00b5s" in to_html(measured)
    assert "900 \u00b5s" in to_markdown(measured)


def test_kinds_add_up(measured: Report) -> None:
    assert measured.latency is not None
    shares = kind_shares(measured.latency.devices[0])
    assert [(one.name, one.count) for one in shares] == [("dot", 600), ("load", 400), ("<b>", 100)]
    assert sum(one.share for one in shares) == pytest.approx(1)
    assert mostly_text(None) == ""


def test_a_count_is_never_a_time() -> None:
    side = DeviceSide(instructions=1000, p50_ms=3.0)
    assert side_text(side) == "1.00 k"
    assert kind_words(DeviceReading(name="arm", reference=side)) == "emulated count: instructions, which are no times"
    assert kind_words(DeviceReading(name="a", reference=DeviceSide(p50_ms=1.0))) == "measured on the device: times"
