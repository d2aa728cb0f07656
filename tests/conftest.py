"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def zoo() -> Path:
    """A folder of larger real models, named by ONNXSLIM_ZOO; tests that want it skip without it."""
    folder = os.environ.get("ONNXSLIM_ZOO")
    if not folder:
        pytest.skip("set ONNXSLIM_ZOO to a folder of real models to run this test")
    return Path(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what one test measured from the next, and from the user."""
    monkeypatch.setenv("ONNXSLIM_CACHE", str(tmp_path / "cache"))
