"""Results as text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tools.conformance.judge import STAGES, Result

VERDICTS = ("passed", "unchanged", "refused", "failed", "crashed")
_SPECIFIC = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


def summary(results: Sequence[Result]) -> str:
    """Return the table of verdicts, why cases were refused, and every failure."""
    lines = [f"{'':24}" + "".join(f"{verdict:>11}" for verdict in VERDICTS)]
    for kind in ("node", "model"):
        for stage in (*STAGES, "any"):
            mine = [r for r in results if r.name.startswith(f"{kind}/") and r.stage == stage]
            counts = Counter(result.verdict for result in mine)
            if mine:
                lines.append(f"{kind + ' · ' + stage:24}" + "".join(f"{counts[verdict]:>11}" for verdict in VERDICTS))
    lines += _reasons(
        "judged by", [r for r in results if r.stage == "exact" and not r.is_bad and r.verdict != "refused"]
    )
    for stage in STAGES:
        lines += _reasons(f"{stage} refused", [r for r in results if r.stage == stage and r.verdict == "refused"])
    bad = [result for result in results if result.is_bad]
    lines += ["", "nothing failed, nothing crashed"] if not bad else ["", "failures"]
    lines += [f"  {r.name} · {r.stage} · {r.verdict}: {r.reason}" for r in bad]
    return "\n".join(lines)


def _reasons(title: str, results: Sequence[Result]) -> list[str]:
    """Count reasons, with names and numbers taken out."""
    counts = Counter(_SPECIFIC.sub("…", result.reason)[:140] for result in results)
    return ["", title, *(f"  {count:5}  {reason}" for reason, count in counts.most_common())] if counts else []
