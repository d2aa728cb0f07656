"""The classics of pruning, one command: ``python tools/recipes``.

Each row of the papers' tables is carried out on the network it is about, in full width with random weights, and what
it saves is put beside what the paper says it saves. Accuracy takes training and is no part of this.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.recipes.replay import Outcome, replay, replay_uniformly, size_of
from tools.recipes.tables import LI2017, NETWORKS, UNIFORM, Network, Size, Uniform

POINTS = 0.1
"""By how many points a reduction may differ: the papers' last digit."""
SHARE = 0.015
"""By how much a network's size may differ, relative to the published one, which has two to four digits."""

_RECIPE = "{:<14}{:>9}{:>9}{:>8}{:>8}{:>11}{:>9}{:>8}{:>8}"
_UNIFORM = "{:<16}{:>9}{:>11}{:>12}{:>8}"
_NETWORK = "{:<16}{:>9}{:>11}{:>9}{:>11}  {}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; return 1 if a line is off, 2 if there is none."""
    parser = argparse.ArgumentParser(prog="python tools/recipes", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="recipes and networks whose name holds TEXT")
    only = parser.parse_args(argv).only
    recipes = [recipe for recipe in LI2017 if only in recipe.name]
    networks = [network for network in NETWORKS if only in network.name]
    if not recipes and not networks:
        parser.error(f"no recipe and no network holds {only!r}: leave --only out to see them all")
    print("Li et al. 2017, Table 1; reductions in percent")
    print(_RECIPE.format("recipe", "MACs", "after", "saved", "paper", "parameters", "after", "saved", "paper"))
    fine = [_print_outcome(replay(recipe)) for recipe in recipes]
    print("\nNetworks as they are")
    print(_NETWORK.format("network", "MACs", "published", "params", "published", "by"))
    fine += [_print_network(network, size_of(network.build())) for network in networks]
    print("\nThe same ratio for every layer; reductions in percent, of which no layer's can exceed `most`")
    print(_UNIFORM.format("network", "ratio", "MACs", "parameters", "most"))
    fine += [_print_uniform(recipe) for recipe in UNIFORM if only in recipe.network.name]
    return int(not all(fine))


def _print_uniform(recipe: Uniform) -> bool:
    before, after = replay_uniformly(recipe)
    saved = [f"{100 * (1 - now / was):.2f}" for now, was in ((after.macs, before.macs), (after.params, before.params))]
    most = f"{100 * (1 - (1 - recipe.ratio) ** 2):.1f}"
    line = _UNIFORM.format(recipe.network.name, f"{recipe.ratio:g}", *saved, most)
    return _print_line(line, recipe.agrees(before, after, POINTS))


def _print_outcome(outcome: Outcome) -> bool:
    before, after, recipe = outcome.before, outcome.after, outcome.recipe
    macs = _short(before.macs), _short(after.macs), f"{outcome.macs:.2f}", f"{recipe.macs:.1f}"
    params = _short(before.params), _short(after.params), f"{outcome.params:.2f}", f"{recipe.params:.1f}"
    return _print_line(_RECIPE.format(recipe.name, *macs, *params), outcome.agrees(POINTS))


def _print_network(network: Network, size: Size) -> bool:
    macs = _short(size.macs), _short(network.macs, "")
    params = _short(size.params), _short(network.params, "")
    return _print_line(_NETWORK.format(network.name, *macs, *params, network.source), network.agrees(size, SHARE))


def _print_line(line: str, is_fine: bool) -> bool:
    print(line if is_fine else f"{line}   off", flush=True)
    return is_fine


def _short(count: float, zeros: str = "#") -> str:
    """Return ``count`` to four digits: 3.644G, 125.5M, 848.9k; final zeros only with ``zeros``."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:{zeros}.4g}{letter}"
    return str(count)


if __name__ == "__main__":
    sys.exit(main())
