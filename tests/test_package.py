"""The distribution: every package is listed, the other onnxslim is refused, the wheel holds what it should."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import onnxslim
import onnxslim_mobile
from onnxslim._neighbour import refuse_other_onnxslim

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_package_is_listed() -> None:
    folders = {"onnxslim", *(f"onnxslim.{p.parent.name}" for p in (ROOT / "onnxslim").glob("*/__init__.py"))}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == folders


def test_the_passes_folder_is_linked_and_refuses_to_be_imported_by_itself() -> None:
    link = ROOT / "onnxslim" / "passes"
    assert link.is_symlink()
    assert link.readlink() == Path("../passes")
    done = subprocess.run(
        [sys.executable, "-c", "import passes"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "import onnxslim.passes" in done.stderr


def test_public_names_exist() -> None:
    assert PROJECT["project"]["version"] == onnxslim.__version__
    for name in onnxslim.__all__:
        assert getattr(onnxslim, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxslim.nothing


def test_start_is_quick() -> None:
    """Help must not load onnxruntime or the passes."""
    code = "import sys, onnxslim.cli.main; sys.exit('onnxruntime' in sys.modules or 'onnxslim.passes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def pretend_both_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1.98" if name == "onnxslim" else real(name))


def test_the_other_onnxslim_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse_other_onnxslim()
    pretend_both_are_installed(monkeypatch)
    assert onnxslim_mobile.run() == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "0.1.98" in line
    assert "pip uninstall" in line
    with pytest.raises(ImportError, match=r"0\.1\.98"):
        refuse_other_onnxslim()


def test_telemetry_is_off() -> None:
    code = "import os, onnxslim.runtime; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.slow
def test_the_wheel_holds_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("onnxslim_mobile-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        "onnxslim/py.typed",
        "onnxslim/passes/insert_qdq.py",
        "onnxslim/report/report.schema.json",
        "onnxslim/report/templates/report.html.j2",
        "onnxslim_mobile.py",
    }
    assert wanted <= names
    assert not any(name.startswith(("tests/", "models/", "tools/", "passes/")) for name in names)
