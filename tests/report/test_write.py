"""Files: the right format, whole or not at all, and one line when it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxslim.errors import OutputError
from onnxslim.report import Report, check_report_path, to_html, to_markdown, write_report
from onnxslim.report import write as write_module


def test_the_ending_picks_the_format(full: Report, tmp_path: Path) -> None:
    for name in ("r.html", "r.json", "r.md", "S.JSON"):
        write_report(full, tmp_path / name)
    assert (tmp_path / "r.html").read_text("utf-8") == to_html(full)
    assert (tmp_path / "r.md").read_text("utf-8") == to_markdown(full)
    assert (tmp_path / "r.json").read_bytes() == full.to_json().encode()
    assert Report.from_json((tmp_path / "S.JSON").read_text("utf-8")) == full
    assert sorted(path.name for path in tmp_path.iterdir()) == ["S.JSON", "r.html", "r.json", "r.md"]


def test_save_takes_text_and_overwrites(full: Report, minimal: Report, tmp_path: Path) -> None:
    path = str(tmp_path / "r.json")
    full.save(path)
    minimal.save(path)
    assert Report.from_json(Path(path).read_text("utf-8")) == minimal


@pytest.mark.parametrize("name", ["r.pdf", "report", "html", "r.html.gz"])
def test_other_endings_name_the_three(name: str, full: Report, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"\.html, \.json or \.md"):
        write_report(full, tmp_path / name)
    with pytest.raises(OutputError):
        check_report_path(name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_one_line(full: Report, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write the report") as caught:
        write_report(full, tmp_path / "nowhere" / "r.json")
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_way_leaves_nothing_behind(full: Report, tmp_path: Path) -> None:
    (tmp_path / "r.json").mkdir()
    (tmp_path / "r.json" / "kept").touch()
    with pytest.raises(OutputError):
        write_report(full, tmp_path / "r.json")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_renderer_that_fails_leaves_the_old_report(
    full: Report, minimal: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(report: Report) -> str:
        raise RuntimeError(report.tool.name)

    minimal.save(tmp_path / "r.md")
    old = (tmp_path / "r.md").read_bytes()
    monkeypatch.setitem(write_module._FORMATS, ".md", broken)
    with pytest.raises(RuntimeError):
        full.save(tmp_path / "r.md")
    assert (tmp_path / "r.md").read_bytes() == old
