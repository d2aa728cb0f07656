"""Accuracy against MACs as one self-contained HTML file: a small chart for each network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

Curve = Sequence[tuple[float, float]]
"""(share of the MACs that is left, accuracy in percent)."""

WIDTH, HEIGHT, LEFT, BOTTOM = 420, 260, 44, 34
COLOURS = ("#1b6ac9", "#c0392b", "#8a6d1d", "#4b8b3b")
STYLE = (
    "body{font:14px system-ui;margin:2rem;background:#fff;color:#222}"
    "figure{display:inline-block;margin:0 1.5rem 1.5rem 0}svg{overflow:visible}"
    "text{font:11px system-ui;fill:currentColor}.grid{stroke:#e5e5e5}"
    "@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}.grid{stroke:#333}}"
)


def write(path: Path, title: str, charts: Mapping[str, Mapping[str, Curve]]) -> None:
    """Write one chart for each network, with a curve for each tool."""
    names = dict.fromkeys(name for curves in charts.values() for name in curves)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    figures = "".join(
        f"<figure><figcaption><b>{html.escape(name)}</b></figcaption>{_chart(curves, colours)}</figure>"
        for name, curves in charts.items()
    )
    legend = " ".join(f'<b style="color:{colour}">— {name}</b>' for name, colour in colours.items())
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    head += f"<style>{STYLE}</style>"
    body = f"<h1>{html.escape(title)}</h1><p>Top-1 in percent against the share of MACs that is left. {legend}</p>"
    path.write_text(head + body + figures + "</html>\n")


def _chart(curves: Mapping[str, Curve], colours: Mapping[str, str]) -> str:
    points = [point for curve in curves.values() for point in curve]
    lowest = max(0.0, 10 * (min(y for _, y in points) // 10))
    highest = min(100.0, 10 * (max(y for _, y in points) // 10 + 1))
    first = min(x for x, _ in points)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (1 - x) / max(1 - first, 1e-9)
        up = (y - lowest) / max(highest - lowest, 1e-9)
        return LEFT + across * (WIDTH - LEFT - 10), 10 + (1 - up) * (HEIGHT - BOTTOM - 10)

    parts = [f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="accuracy against MACs">']
    for step in range(5):
        level = lowest + step * (highest - lowest) / 4
        left, y = place(1.0, level)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{level:.0f}</text>')
        share = 1 - step * (1 - first) / 4
        x, bottom = place(share, lowest)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{share:.0%}</text>')
    for name, curve in curves.items():
        placed = [place(*point) for point in sorted(curve, reverse=True)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colours[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colours[name]}"/>' for x, y in placed]
    return "".join(parts) + "</svg>"
