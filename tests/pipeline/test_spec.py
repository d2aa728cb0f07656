"""Pipelines as text: what parses, what does not, and that text and passes say the same."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxslim.errors import SpecError
from onnxslim.ir import Rewriter
from onnxslim.pipeline import Effect, Pass, PassContext, format_spec, option, parse_spec, put_exact_first


class Colour(enum.Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Paint(Pass):
    """Has an option of every type."""

    name = "paint"
    effect = Effect.APPROXIMATE
    ratio: float | None = option(None, "a number")
    layers: int = option(1, "a whole number")
    colour: Colour = option(Colour.RED, "a choice")
    dry: bool = option(False, "a switch")
    only: tuple[str, ...] = option((), "patterns")
    label: str | None = option(None, "any text")

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class Tidy(Pass):
    """An exact pass without options."""

    name = "tidy"
    effect = Effect.EXACT

    def run(self, rewriter: Rewriter, context: PassContext) -> None:
        """Do nothing."""


KNOWN: dict[str, type[Pass]] = {"paint": Paint, "tidy": Tidy}
EXACT = (Tidy,)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("paint", [Paint()]),
        ("exact,paint{ratio=0.3 layers=2}", [Tidy(), Paint(ratio=0.3, layers=2)]),
        (" paint { colour=blue dry=true } , tidy ", [Paint(colour=Colour.BLUE, dry=True), Tidy()]),
        ('paint{only=conv*|fc? label="a, {b} \\"c\\""}', [Paint(only=("conv*", "fc?"), label='a, {b} "c"')]),
        ("paint{}", [Paint()]),
    ],
)
def test_text_becomes_passes(text: str, passes: list[Pass]) -> None:
    assert parse_spec(text, KNOWN, EXACT) == passes


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("paimt", "did you mean 'paint'"),
        ("paint{rato=1}", "no option 'rato': did you mean 'ratio'"),
        ("tidy{x=1}", "it takes no options"),
        ("paint{ratio=much}", "option 'ratio' of pass 'paint' is 'much': give a number"),
        ("paint{layers=1.5}", "give a whole number"),
        ("paint{colour=bleu}", "did you mean 'blue'"),
        ("paint{dry=maybe}", "dry"),
        ("paint{ratio=1 ratio=2}", "given twice"),
        ("paint{ratio", "ends where = is expected"),
        ("paint paint", "expected a comma"),
        ("", "ends where a pass name is expected"),
        ("paint,", "ends where a pass name is expected"),
        ("exact{x=1}", "takes no options"),
        ('paint{label="open', "unexpected"),
    ],
)
def test_bad_text_says_what_and_where(text: str, fragment: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text, KNOWN, EXACT)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.builds(
        Paint,
        ratio=st.none() | st.floats(allow_nan=False),
        layers=st.integers(),
        colour=st.sampled_from(Colour),
        dry=st.booleans(),
        only=st.lists(st.text(min_size=1).filter(lambda t: "|" not in t)).map(tuple),
        label=st.none() | st.text(),
    )
)
def test_text_round_trips(item: Paint) -> None:
    assert parse_spec(format_spec([item, Tidy()]), KNOWN, EXACT) == [item, Tidy()]


def test_exact_is_put_in_front_once() -> None:
    assert put_exact_first([Paint()], EXACT) == [Tidy(), Paint()]
    assert put_exact_first([Tidy(), Paint()], EXACT) == [Tidy(), Paint()]
    assert put_exact_first([], EXACT) == [Tidy()]
