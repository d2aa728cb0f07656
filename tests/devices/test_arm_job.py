"""What goes into the emulated process and what comes out: names, feeds, words, and how it ends when it ends badly."""

from __future__ import annotations

import ast
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxslim.devices.arm_cpus import CPUS
from onnxslim.devices.arm_emulator import Emulation
from onnxslim.devices.arm_home import GUEST, Home
from onnxslim.devices.arm_job import Order, work_through, write_models, write_probes
from onnxslim.errors import DeviceError, ModelError

TEXT = '<ir_version: 8, opset_import: ["": 17]> g (float[n] x, int64[1] k) => (float[n] y) { h = Abs (x)  y = Neg (h) }'


def save(path: Path, **options: Any) -> Path:
    model = onnx.parser.parse_model(TEXT)
    model.graph.node[0].name = "named"
    onnx.save(model, path, **options)
    return path


def feed() -> dict[str, Any]:
    return {"x": np.ones(3, np.float32), "k": np.array([2]), "a/b": np.array(["é", "yy"], object)}


def test_copies_have_nodes_named_after_their_outputs(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx")
    before = path.read_bytes()
    folder = tmp_path / "job"
    folder.mkdir()
    (order,) = write_models(folder, [path], feed())
    assert order.anchors == {"h", "y"}
    assert [node.name for node in onnx.load(folder / order.file).graph.node] == ["h", "y"]
    assert path.read_bytes() == before
    with np.load(folder / order.feed, allow_pickle=False) as stored:
        back = {name: stored[f"arr_{i}"] for i, name in enumerate(order.inputs)}
    assert {name: array.tolist() for name, array in back.items()} == {"x": [1, 1, 1], "k": [2], "a/b": ["é", "yy"]}


def test_the_script_gets_no_more_than_it_needs(tmp_path: Path) -> None:
    orders = [*write_probes(tmp_path), *write_models(tmp_path, [save(tmp_path / "m.onnx")], feed())]
    for order in orders:
        given = json.loads(json.dumps(order.as_json()))
        assert set(given) == {"name", "file", "feed", "inputs", "optimized", "data_folder"}
        assert (tmp_path / given["file"]).is_file()
    assert [order.optimized for order in orders] == [False] * 4 + [True]


def test_weights_in_files_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = tmp_path / "model", tmp_path / "job"
    source.mkdir()
    folder.mkdir()
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[64] x) => (float[64] y) { y = Add (x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(64, np.float32), "w"))
    onnx.save(model, source / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(source)
    (order,) = write_models(folder, [Path("m.onnx")], {"x": np.ones(64, np.float32)})
    assert order.data_folder == str(source)
    assert [path.name for path in folder.iterdir() if path.suffix == ".data"] == []
    assert onnx.load(folder / order.file, load_external_data=False).graph.initializer[0].external_data


def test_a_model_in_ort_format_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.ort").write_bytes(b"ORTM")
    monkeypatch.chdir(tmp_path)
    (order,) = write_models(tmp_path, [Path("m.ort")], feed())
    assert order.file == str(tmp_path / "m.ort")
    assert order.anchors == set()


def test_an_input_that_is_not_fed_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="input 'k' is not fed"):
        write_models(tmp_path, [save(tmp_path / "m.onnx")], {"x": np.ones(3, np.float32)})


class PretendedHome(Home):
    """Runs scripts of the guest with this Python: no emulator, no clock."""

    def tool(self, name: str) -> list[str]:
        code = "import runpy, sys; runpy.run_path(sys.argv[-1], run_name='__main__')"
        return [sys.executable, "-E", "-c", code]


def pretended(folder: Path, patience: float = 60) -> Emulation:
    return Emulation(PretendedHome(folder / "home"), CPUS[0], patience)


def words_of(tmp_path: Path, script: str, patience: float = 60) -> list[dict[str, Any]]:
    (tmp_path / "script.py").write_text(script)
    return list(pretended(tmp_path, patience).run(tmp_path / "script.py", tmp_path, "log"))


def test_words_are_objects_a_line_and_other_output_is_ignored(tmp_path: Path) -> None:
    script = "print('hello'); print('{\"a\": 1}', flush=True); print('{\"b\":', end='', flush=True); print(' 2}')"
    assert words_of(tmp_path, script) == [{"a": 1}, {"b": 2}]


def test_it_sees_nothing_of_our_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    (word,) = words_of(tmp_path, "import json, os; print(json.dumps([*os.environ]).join(['{\"e\":', '}']))")
    assert "SECRET" not in word["e"]
    assert {"PYTHONHASHSEED", "ORT_DISABLE_TELEMETRY", "OPENBLAS_NUM_THREADS"} <= set(word["e"])


def test_a_crash_is_its_last_line(tmp_path: Path) -> None:
    line = r"onnxruntime crashed on an emulated cortex-a76 \(qemu: uncaught target signal 4\): see whether"
    with pytest.raises(DeviceError, match=line) as caught:
        words_of(tmp_path, "import sys; sys.exit('traceback\\nqemu: uncaught target signal 4\\n')")
    assert "\n" not in str(caught.value)
    with pytest.raises(DeviceError, match=r"\(it said nothing\)"):
        words_of(tmp_path, f"import os; os.kill(os.getpid(), {int(signal.SIGSEGV)})")


def test_a_kill_is_want_of_memory(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="was killed, probably for want of memory: free some"):
        words_of(tmp_path, f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")


def test_silence_is_ended(tmp_path: Path) -> None:
    script = "import os, time; print('{\"p\": %d}' % os.getpid(), flush=True); time.sleep(600)"
    (tmp_path / "script.py").write_text(script)
    words = pretended(tmp_path, 3).run(tmp_path / "script.py", tmp_path, "log")
    process = next(words)["p"]
    with pytest.raises(DeviceError, match=r"took over 3 s for one step: try a smaller model"):
        next(words)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_what_is_no_longer_listened_to_is_ended(tmp_path: Path) -> None:
    script = "import os, time; print('{\"p\": %d}' % os.getpid(), flush=True); time.sleep(600)"
    (tmp_path / "script.py").write_text(script)
    words = pretended(tmp_path).run(tmp_path / "script.py", tmp_path, "log")
    process = next(words)["p"]
    del words
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


class Told:
    """An emulation that says what it is told, and then fails."""

    def __init__(self, *words: dict[str, Any]) -> None:
        self.words = words

    def run(self, script: Path, folder: Path, log: str) -> Any:
        np.zeros(0, "<u8").tofile(folder / log)
        yield from self.words
        raise DeviceError("it crashed: do this")


def test_a_crash_names_its_model(tmp_path: Path) -> None:
    orders = [Order(f"model-{i}", "f", "f", (), shown=f"{i}.onnx") for i in range(2)]
    told: Any = Told({"model": "model-0", "found": {"refused": "no\nmore"}}, {"model": "model-1", "did": "start"})
    with pytest.raises(DeviceError, match=r"^1\.onnx: it crashed: do this$"):
        work_through(orders, told, tmp_path)
    nothing: Any = Told()
    with pytest.raises(DeviceError, match=r"^it crashed: do this$"):
        work_through(orders, nothing, tmp_path)


def test_what_onnxruntime_refuses_is_told_in_one_line(tmp_path: Path) -> None:
    """With onnxruntime here in place of ARM's: the script's own words, and a model that cannot run."""
    bad = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[4] x) => (float[2,2] y) '
        "{ s = Constant <value = int64[2] {3, 3}> ()  y = Reshape (x, s) }"
    )
    onnx.save(bad, tmp_path / "bad.onnx")
    orders = write_models(tmp_path, [tmp_path / "bad.onnx"], {"x": np.ones(4, np.float32)})
    np.zeros(0, "<u8").tofile(tmp_path / "counts.bin")
    heard: list[None] = []
    emulation = Emulation(HomeWithPackages(tmp_path), CPUS[0], 60)
    (found,) = work_through(orders, emulation, tmp_path, lambda: heard.append(None)).values()
    assert "Reshape" in str(found.refused)
    assert "\n" not in str(found.refused)
    assert found.counted is None
    assert len(heard) == 3


class HomeWithPackages(PretendedHome):
    """The same, with the packages of this Python."""

    def tool(self, name: str) -> list[str]:
        code = f"import runpy, sys; sys.path += {sys.path!r}; runpy.run_path(sys.argv[-1], run_name='__main__')"
        return [sys.executable, "-E", "-c", code]


def test_the_guests_script_imports_nothing_of_ours() -> None:
    tree = ast.parse((GUEST / "measure.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= {"gc", "json", "time", "pathlib", "typing", "numpy", "onnxruntime"}
