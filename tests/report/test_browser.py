"""The page as a browser shows it: it opens quickly, sorts, filters, folds, and fits a phone. Skips without Chromium."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from onnxslim.devices.web_browser import find_browser, is_sandboxed
from onnxslim.errors import DeviceError
from onnxslim.report import Report, to_html

Document = dict[str, Any]
NODES = 2000
FLAGS = (
    "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> str:
    """Chromium's path."""
    try:
        return str(find_browser(None))
    except DeviceError as error:
        pytest.skip(f"this test looks at the page in a browser: {error}")


@pytest.fixture
def long(full_document: Document) -> Report:
    """The report of a chain of 2,000 convolutions, made int8 and timed."""
    names = [f"stage.{index // 50}/block.{index}/Conv_output_0" for index in range(NODES)]
    layers = [
        {"anchor": name, "op": "Conv", "bytes": 9216 + index, "params": 2304, "macs": 9 * 10**5 + index,
         "activation_bytes": 10**5 + 13 * index % 7000} for index, name in enumerate(names)
    ]  # fmt: skip
    for side in ("input", "output"):
        full_document[side] |= {"layers": layers, "nodes": NODES}
    full_document["output"]["ranges"] = [
        {"tensor": name, "low": -1.5, "high": 1.5 + index, "step": 0.0118, "type": "uint8"}
        for index, name in enumerate(names)
    ]
    full_document["latency"]["layers"] = [
        {"node": name, "op": "QLinearConv", "origin": name, "reference_us": 10 + index / 7, "candidate_us": 5.0,
         "share": 1 / NODES} for index, name in enumerate(names)
    ]  # fmt: skip
    return Report.model_validate(full_document)


def look(browser: str, folder: Path, page: str, script: str, width: int = 1100, *, dark: bool = False) -> Any:
    """Open a page in a frame of some width and return what ``script``, run in it once it is loaded, returns."""
    probe = f"addEventListener('load', () => parent.postMessage(JSON.stringify((() => {{ {script} }})()), '*'));"
    (folder / "page.html").write_text(page.replace("</body>", f"<script>{probe}</script></body>"), "utf-8")
    frame = f'<iframe src="page.html" width="{width}" height="800"></iframe>'
    listen = "addEventListener('message', event => { document.body.dataset.found = event.data; });"
    (folder / "frame.html").write_text(f"<body><script>{listen}</script>{frame}</body>", "utf-8")
    flags = [*FLAGS, *([] if is_sandboxed() else ["--no-sandbox"]), f"--user-data-dir={folder / 'profile'}"]
    flags += ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [browser, *flags, "--virtual-time-budget=20000", "--dump-dom", (folder / "frame.html").as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r'data-found="([^"]*)"', said)
    assert found is not None, "the page's script did not run to its end"
    return json.loads(html.unescape(found[1]))


def test_two_thousand_layers_open_quickly(browser: str, tmp_path: Path, long: Report) -> None:
    """A second on an idle machine; the limit leaves room for a busy one."""
    page = to_html(long)
    assert len(page) < 1_500_000
    script = "document.body.getBoundingClientRect(); return performance.now();"
    assert look(browser, tmp_path, page, script) < 5000


def test_long_tables_are_folded_sorted_and_filtered(browser: str, tmp_path: Path, long: Report) -> None:
    script = """
        document.querySelectorAll("details").forEach(part => { part.open = true; });
        const table = document.querySelector("table.every"), rows = () => [...table.tBodies[0].rows];
        const shown = () => rows().filter(row => row.offsetParent !== null && row.getClientRects().length).length;
        const first = () => rows()[0].cells[1].textContent;
        const found = {before: [shown(), first()]};
        const head = [...table.tHead.rows[0].cells].find(cell => cell.textContent === "Bytes");
        head.querySelector("button").click();
        found.down = [shown(), first(), head.getAttribute("aria-sort")];
        head.querySelector("button").click();
        found.up = [shown(), first(), head.getAttribute("aria-sort")];
        const scroll = table.closest(".scroll"), input = scroll.previousElementSibling.querySelector("input");
        input.value = "BLOCK.199"; input.dispatchEvent(new Event("input"));
        found.filtered = [shown(), scroll.previousElementSibling.querySelector("output").textContent];
        input.value = ""; input.dispatchEvent(new Event("input"));
        const button = scroll.nextElementSibling.querySelector("button");
        found.button = button.textContent; button.click();
        found.all = shown();
        return found;"""
    found = look(browser, tmp_path, to_html(long), script)
    name = "stage.{}/block.{}/Conv_output_0".format
    assert found == {
        "before": [30, name(0, 0)],
        "down": [30, name(39, 1999), "descending"],
        "up": [30, name(0, 0), "ascending"],
        "filtered": [11, "11 of 2000 rows"],
        "button": "Show all 2000 rows",
        "all": 2000,
    }


@pytest.mark.parametrize("width", [360, 1100])
def test_no_page_is_wider_than_its_window(browser: str, tmp_path: Path, full: Report, width: int) -> None:
    script = """
        document.querySelectorAll("details").forEach(part => { part.open = true; });
        const wide = [...document.querySelectorAll("body *")].filter(part => !part.closest(".scroll"))
            .filter(part => part.getBoundingClientRect().right > innerWidth + 0.5);
        return [innerWidth, wide.slice(0, 5).map(part => part.outerHTML.slice(0, 80))];"""
    assert look(browser, tmp_path, to_html(full), script, width) == [width, []]


def test_printing_opens_what_is_folded_away(browser: str, tmp_path: Path, full: Report) -> None:
    script = """
        dispatchEvent(new Event("beforeprint"));
        return [...document.querySelectorAll("details")].filter(part => !part.open).length;"""
    assert look(browser, tmp_path, to_html(full), script) == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_contrast(browser: str, tmp_path: Path, full: Report, dark: bool) -> None:
    """At least 4.5 to 1 against what is behind it (WCAG 2.2, 1.4.3)."""
    script = """
        const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(v => { v /= 255;
            return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const behind = part => { while (part) { const c = getComputedStyle(part).backgroundColor;
            if (!/, 0\\)$/.test(c)) return c; part = part.parentElement; } return "rgb(255, 255, 255)"; };
        const bad = {};
        document.querySelectorAll("details").forEach(part => { part.open = true; });
        for (const part of document.querySelectorAll("main *, header *, footer")) {
            const own = [...part.childNodes].some(node => node.nodeType === 3 && node.data.trim());
            if (!own || part.closest("svg") || part.matches("title")) continue;
            const [a, b] = [light(getComputedStyle(part).color), light(behind(part))].sort((x, y) => y - x);
            const ratio = (a + 0.05) / (b + 0.05);
            if (ratio < 4.5) bad[part.tagName + "." + part.className] = ratio.toFixed(2);
        }
        return [matchMedia("(prefers-color-scheme:dark)").matches, bad];"""
    assert look(browser, tmp_path, to_html(full), script, dark=dark) == [dark, {}]
