"""Fixtures that every room's tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnxslim.runtime.blas import blas_threads


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


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Compute with one thread, as passes do by default: workers beside each other would only wait for each other."""
    with blas_threads(1):
        yield
