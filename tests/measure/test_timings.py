"""Times that are remembered: found again, bounded, and never an obstacle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onnxslim.measure import timings
from onnxslim.measure.timings import Timings, cache_folder


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    first = Timings(tmp_path / "deep" / "t.json")
    first.put("a", 0.5)
    assert first.get("a") == 0.5
    first.keep()
    assert Timings(tmp_path / "deep" / "t.json").get("a") == 0.5
    assert Timings(tmp_path / "deep" / "t.json").get("b") is None


def test_two_at_once_keep_both(tmp_path: Path) -> None:
    one, other = Timings(tmp_path / "t.json"), Timings(tmp_path / "t.json")
    one.put("a", 0.5)
    other.put("b", 0.25)
    one.keep()
    other.keep()
    both = Timings(tmp_path / "t.json")
    assert (both.get("a"), both.get("b")) == (0.5, 0.25)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\\xff", '{"a": "x", "b": -1.0, "c": null, "d": 1e400}'])
def test_what_is_no_such_file_counts_as_empty(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    found = Timings(tmp_path / "t.json")
    assert [found.get(key) for key in "abcd"] == [None] * 4


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timings, "MOST", 3)
    for key in "abcde":
        own = Timings(tmp_path / "t.json")
        own.put(key, 1.0)
        own.keep()
    assert list(json.loads((tmp_path / "t.json").read_text())) == ["c", "d", "e"]


def test_a_place_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = Timings(tmp_path / "file" / "t.json")
    found.put("a", 1.0)
    found.keep()
    assert found.get("a") == 1.0


def test_the_folder_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXSLIM_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("ONNXSLIM_CACHE")
    assert "onnxslim" in str(cache_folder())
