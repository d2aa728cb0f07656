"""A browser: what the server hands out and takes, the page's protocol with a pretended browser, and Chromium."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from devices import fake_browser
from devices.fake_browser import fetch

from onnxslim.devices import Job
from onnxslim.devices.base import Array, DeviceResult, Kind
from onnxslim.devices.web import LEAST_ROUNDS, MOST_ROUNDS, WebDevice
from onnxslim.devices.web_browser import Browser, find_browser
from onnxslim.devices.web_packages import FILES, INTEGRITY, VERSION, find_package
from onnxslim.devices.web_server import Gone, PageServer, Share, Source
from onnxslim.errors import DeviceError, ModelError
from onnxslim.runtime import Session

FEED: dict[str, Array] = {
    "x": np.array([[1, 2], [3, 4.5]], np.float32),
    "k": np.array([2**53 + 1], np.int64),
    "i": np.array([7, -7], np.int32),
    "u": np.array([250, 7], np.uint8),
    "b": np.array(True),
    "h": np.array([1, 2.5], np.float16),
    "d": np.array([1e300]),
    "e": np.zeros((0,), np.int8),
}
TYPES = (
    '<ir_version: 10, opset_import: ["" : 18]> f (float[n, 2] x, int64[1] k, int32[m] i, uint8[2] u, bool b, '
    "float16[n] h, double[1] d, int8[0] e) => (float[n, 2] y, int64[1] k2, int32[m] i2, uint8[2] u2, bool b2, "
    "float16[n] h2, double[1] d2, int8[0] e2) { y = Add (x, w)  k2 = Add (k, k)  i2 = Neg (i)  u2 = Identity (u) "
    "b2 = Not (b)  h2 = Add (h, h)  d2 = Add (d, d)  e2 = Identity (e) }"
)


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """Return the same model twice: in one file, and with its weights in a folder beside it."""
    model = onnx.parser.parse_model(TYPES)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(2, dtype=np.float32), "w"))
    whole, apart = tmp_path / "whole.onnx", tmp_path / "apart.onnx"
    onnx.save(model, whole)
    (tmp_path / "sub").mkdir()
    onnx.save(model, apart, save_as_external_data=True, location="sub/w.bin", size_threshold=0)
    return [whole, apart]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a package that looks like onnxruntime-web."""
    folder = tmp_path / "package"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text('{"version": "1.2.3"}')
    for name in FILES:
        (folder / "dist" / name).write_bytes(name.encode())
    return folder


@pytest.fixture
def browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setenv("FAKE_BROWSER_LOG", str(tmp_path / "log"))
    return fake_browser.install(tmp_path)


# ---- the server --------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "big").write_bytes(bytes(3_000_000))
    handed: dict[str, Source] = {"": b"<!doctype html>", "a.mjs": b"1", "b.wasm": b"2", "big": tmp_path / "big"}
    with PageServer(handed) as running:
        yield running


def test_what_is_on_the_list_is_handed_out_with_its_type_and_isolated(server: PageServer) -> None:
    kinds = {
        "": "text/html",
        "a.mjs": "text/javascript",
        "b.wasm": "application/wasm",
        "big": "application/octet-stream",
    }
    for place, kind in kinds.items():
        status, body, headers = fetch(server.url(place))
        assert status == 200
        assert headers["Content-Type"] == kind
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert len(body) == int(headers["Content-Length"])
    assert fetch(server.url("big"))[1] == bytes(3_000_000)


@pytest.mark.parametrize(
    "place", ["secret", "../secret", "..%2fsecret", "a.mjs/../../secret", "/etc/passwd", "big/", "a.mjs?x=1", "A.MJS"]
)
def test_nothing_else_is_there(server: PageServer, place: str) -> None:
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port))) as connection:  # a library would tidy the path
        connection.sendall(f"GET {server.prefix}{place} HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        assert connection.recv(100).split()[1] == b"404"


def test_who_does_not_know_the_secret_or_comes_by_another_name_finds_nothing(server: PageServer) -> None:
    assert fetch(f"http://{server.host}/")[0] == 404
    assert fetch(f"http://{server.host}/result", b"{}")[0] == 404
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {server.prefix} HTTP/1.1\r\nHost: evil.example:{port}\r\n\r\n".encode())
        assert connection.recv(100).split()[1] == b"404"
    assert server.events.empty()
    assert host == "127.0.0.1"


def test_what_is_posted_is_taken(server: PageServer) -> None:
    assert fetch(server.url("progress"), b'{"share": 0.25}')[0] == 200
    assert fetch(server.url("outputs/0/12"), b"\x00\x01")[0] == 200
    assert fetch(server.url("result"), b'{"sides": []}')[0] == 200
    assert server.events.get(timeout=5) == Share(0.25)
    assert server.events.get(timeout=5) == {"sides": []}
    assert server.outputs == {"outputs/0/12": b"\x00\x01"}


@pytest.mark.parametrize(
    ("place", "body", "status"),
    [
        ("result", b"not json", 400),
        ("result", b"[1]", 400),
        ("progress", b"{}", 400),
        ("progress", b" " * 5000, 413),
        ("elsewhere", b"{}", 404),
        ("outputs/0", b"", 404),
        ("outputs/0/12345", b"", 404),
        ("result/0/1", b"{}", 404),
        ("a.mjs", b"", 404),
    ],
)
def test_nothing_else_is_taken(server: PageServer, place: str, body: bytes, status: int) -> None:
    assert fetch(server.url(place), body)[0] == status
    assert server.events.empty()
    assert not server.outputs


def test_a_page_that_goes_is_noticed(server: PageServer) -> None:
    host, port = server.host.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"GET {server.prefix}alive HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        assert server.events.empty()
    assert server.events.get(timeout=5) == Gone()


# ---- the protocol ------------------------------------------------------------------------------------------------


def measure(browser: Path, package: Path, models: list[Path], patience: float = 60) -> DeviceResult:
    return WebDevice(browser, package, patience).measure(Job(models, FEED, 0.1, threads=2, seed=3))


def test_a_job_and_its_results(browser: Path, package: Path, models: list[Path]) -> None:
    result = measure(browser, package, models)
    assert (result.name, result.kind) == ("web", Kind.MEASURED)
    whole, apart = result.sides
    assert len(whole.times_ms) == len(apart.times_ms) == len(result.twin_ms) == LEAST_ROUNDS
    assert whole.times_ms[0] == models[0].stat().st_size / 1e3
    weights = models[1].parent / "sub" / "w.bin"
    assert apart.times_ms[0] == (models[1].stat().st_size + weights.stat().st_size) / 1e3
    assert whole.load_ms == 5
    for side in result.sides:
        assert set(side.outputs) == {f"out_{name}" for name in FEED}  # text is left out
        for name, value in FEED.items():
            np.testing.assert_array_equal(side.outputs[f"out_{name}"], value)
            assert side.outputs[f"out_{name}"].dtype == value.dtype
            assert side.outputs[f"out_{name}"].shape == value.shape


def test_facts_and_the_order_that_the_seed_draws(
    browser: Path, package: Path, models: list[Path], tmp_path: Path
) -> None:
    facts = measure(browser, package, models).facts
    draw = random.Random(3)  # noqa: S311
    assert json.loads((tmp_path / "log").read_text())["orders"] == [
        draw.sample(range(3), 3) for _ in range(MOST_ROUNDS)
    ]
    assert (facts["seed"], facts["rounds"]) == (3, LEAST_ROUNDS)
    assert (facts["onnxruntime_web"], facts["browser"], facts["threads"]) == ("9.9.9", "Pretend/1.0", 2)
    assert facts["warnings"] == []
    json.dumps(facts)


def test_the_browser_gets_an_empty_profile_and_keeps_to_itself(
    browser: Path, package: Path, models: list[Path], tmp_path: Path
) -> None:
    measure(browser, package, models)
    log = json.loads((tmp_path / "log").read_text())
    flags = log["arguments"][:-1]
    wanted = "--headless=new --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    assert {*wanted.split(), "--disable-component-update", "--disable-sync"} <= set(flags)
    assert ("--no-sandbox" in flags) == (os.geteuid() == 0)
    (profile,) = (flag.partition("=")[2] for flag in flags if flag.startswith("--user-data-dir="))
    assert not Path(profile).parent.exists()  # it went with the browser
    assert log["arguments"][-1].startswith("http://127.0.0.1:")
    assert all(status == 200 for status in log["seen"].values())


FAULTS = [
    ("dies", r"the browser ended before it measured: No usable sandbox!: check that it runs by itself"),
    ("silent", r"the page said nothing for 1 s: the models are too slow"),
    ("crashes", r"the page crashed: all models together may want more than its 4 GB"),
    ("refuses", r"onnxruntime-web does not run .*apart\.onnx: no kernel for Foo: measure it on another device"),
    ("fails", r"the page failed while starting: x is not there \(404\): run `onnxslim device setup web` again"),
    ("babbles", r"what the page posted is not understood \(.*\): use onnxruntime-web as setup installs it"),
    ("uneven", r"what the page posted is not understood \(rounds are missing\)"),
]


@pytest.mark.parametrize(("scenario", "message"), FAULTS, ids=[scenario for scenario, _ in FAULTS])
def test_a_fault_is_one_line(
    browser: Path,
    package: Path,
    models: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    scenario: str,
    message: str,
) -> None:
    monkeypatch.setenv("FAKE_BROWSER", scenario)
    with pytest.raises(DeviceError, match=message) as caught:
        measure(browser, package, models, patience=1 if scenario == "silent" else 60)
    assert "\n" not in str(caught.value)


def test_a_coarse_clock_is_a_warning(
    browser: Path, package: Path, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BROWSER", "coarse")
    facts = measure(browser, package, models).facts
    assert "100 µs" in facts["clock"]
    assert "its clock is coarse" in facts["warnings"][0]


def test_ctrl_c_ends_the_browser(browser: Path, package: Path, models: list[Path], tmp_path: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WebDevice(browser, package).measure(Job(models, FEED, 0.1, progress=interrupt))
    address = json.loads((tmp_path / "log").read_text())["arguments"][-1]
    assert subprocess.run(["pgrep", "-f", address], capture_output=True, check=False).returncode == 1


def test_inputs_and_models_that_cannot_be_sent(browser: Path, package: Path, models: list[Path]) -> None:
    with pytest.raises(DeviceError, match=r"input 'x' is of type str.*, which no page takes"):
        WebDevice(browser, package).measure(Job(models, {**FEED, "x": np.array(["a"])}))
    with pytest.raises(ModelError, match="input 'k' is not fed"):
        WebDevice(browser, package).measure(Job(models, {"x": FEED["x"]}))


# ---- what has to be there ----------------------------------------------------------------------------------------


def test_no_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, browser: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("onnxslim.devices.web_browser._ELSEWHERE", ())
    with pytest.raises(DeviceError, match=r"no Chromium or Chrome is installed: install one .* name it in CHROME"):
        find_browser()
    with pytest.raises(DeviceError, match="gone is not there: install one"):
        find_browser(tmp_path / "gone")
    monkeypatch.setenv("CHROME", str(tmp_path / "lost"))
    with pytest.raises(DeviceError, match="lost is not there"):
        WebDevice().measure(Job([], {}))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CHROME")
    assert find_browser() == str(browser)


def test_a_browser_that_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "chrome"
    path.write_bytes(b"\x7fELF")
    path.chmod(0o700)
    with Browser(str(path)) as opened, pytest.raises(DeviceError, match="chrome does not run: Exec format error"):
        opened.open("http://127.0.0.1/")


def test_no_package_or_half_of_one(package: Path, tmp_path: Path, browser: Path) -> None:
    with pytest.raises(DeviceError, match=r"onnxruntime-web is not installed in .*: run `onnxslim device setup web`"):
        find_package()
    with pytest.raises(DeviceError, match=r"is not installed in .*nowhere"):
        find_package(tmp_path / "nowhere")
    assert find_package(package).version == "1.2.3"
    (package / "dist" / FILES[1]).unlink()
    with pytest.raises(DeviceError, match=rf"onnxruntime-web 1\.2\.3 .* lacks {FILES[1]}: run"):
        WebDevice(browser, package).measure(Job([], {}))


NPM = """#!/bin/sh
echo "$@" > "{log}"
[ "{scenario}" = offline ] && echo "npm error code ENOTFOUND" >&2 && echo "npm error network" >&2 && exit 1
folder=node_modules/onnxruntime-web
mkdir -p $folder/dist && echo '{{"version": "{version}"}}' > $folder/package.json
for name in {files} other.wasm; do echo x > $folder/dist/$name; done
echo '{{"packages": {{"node_modules/onnxruntime-web": {{"integrity": "{integrity}"}}}}}}' > package-lock.json
"""


@pytest.mark.parametrize("scenario", ["fine", "offline", "other"])
def test_setup_has_npm_fetch_the_pinned_version(
    browser: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scenario: str
) -> None:
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    integrity = "sha512-else" if scenario == "other" else INTEGRITY
    names = {"log": tmp_path / "npm.log", "files": " ".join(FILES), "version": VERSION}
    npm.write_text(NPM.format(**names, scenario=scenario, integrity=integrity))
    npm.chmod(0o700)
    monkeypatch.setenv("PATH", f"{npm.parent}:{os.environ['PATH']}")
    seen: list[tuple[str, int, int]] = []
    device = WebDevice(browser)
    if scenario == "fine":
        device.setup(lambda *step: seen.append(step))
        assert seen == [("npm install", 0, 1), ("npm install", 1, 1)]
        found = find_package()
        assert found.version == VERSION
        assert sorted(path.name for path in found.dist.iterdir()) == sorted(FILES)
        device.setup(lambda *step: None)  # once more is no harm
    else:
        said = "error code ENOTFOUND" if scenario == "offline" else r"that is not ours \(sha512-else\)"
        with pytest.raises(DeviceError, match=said):
            device.setup(lambda *step: None)
    words = (tmp_path / "npm.log").read_text().split()
    assert words[:2] == ["install", "--ignore-scripts"]
    assert words[-1] == f"onnxruntime-web@{VERSION}"
    left = [path.name for path in Path(os.environ["ONNXSLIM_CACHE"]).iterdir()]
    assert left == ([f"onnxruntime-web-{VERSION}"] if scenario == "fine" else [])


def test_setup_without_npm_or_browser(browser: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr("onnxslim.devices.web_browser._ELSEWHERE", ())
    with pytest.raises(DeviceError, match=r"npm, which fetches onnxruntime-web, is not installed: install Node\.js"):
        WebDevice(browser).setup(lambda *step: None)
    with pytest.raises(DeviceError, match="no Chromium or Chrome is installed"):
        WebDevice().setup(lambda *step: None)


# ---- a real one --------------------------------------------------------------------------------------------------


@pytest.fixture
def chromium(monkeypatch: pytest.MonkeyPatch) -> WebDevice:
    """A real browser with the onnxruntime-web that the user's cache holds."""
    monkeypatch.delenv("ONNXSLIM_CACHE")
    try:
        find_browser()
        find_package()
    except DeviceError as error:
        pytest.skip(str(error))
    return WebDevice()


def test_chromium_runs_all_types_of_tensors_as_the_host_does(chromium: WebDevice, models: list[Path]) -> None:
    result = chromium.measure(Job(models, FEED, 0.2))
    host = Session(models[0]).run(dict(FEED))
    for side in result.sides:
        assert set(side.outputs) == set(host)
        for name, value in host.items():
            np.testing.assert_array_equal(side.outputs[name], value)
            assert side.outputs[name].dtype == value.dtype
        assert len(side.times_ms) >= LEAST_ROUNDS
        assert min(side.times_ms) > 0
    assert "Chrome" in result.facts["browser"]
    assert result.facts["warnings"] == []


def test_chromium_says_what_it_does_not_run(chromium: WebDevice, tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["" : 18, "odd" : 1]> f (float[1] x) => (float[1] y) { y = odd.Foo (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "odd.onnx")
    with pytest.raises(DeviceError, match=r"onnxruntime-web does not run .*odd\.onnx: .*odd"):
        chromium.measure(Job([tmp_path / "odd.onnx"], {"x": np.ones(1, np.float32)}, 0.2))


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed: the page's syntax is not checked")
def test_the_page_is_javascript() -> None:
    page = Path(__file__).parents[2] / "onnxslim" / "devices" / "web_page.mjs"
    subprocess.run(["node", "--check", str(page)], check=True)
