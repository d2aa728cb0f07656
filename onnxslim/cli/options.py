"""Options that several commands share, spelt and explained the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from onnxslim.targets import DEFAULT_TARGET, TARGETS

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

MODEL = click.Path(path_type=Path)


class ShapeOption(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """``NAME=1x3x224x224`` as (name, dimensions)."""

    name = "NAME=DIMS"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Parse one value, or complain with an example."""
        name, _, dims = str(value).rpartition("=")
        if not name or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", dims):
            self.fail(f"{value!r} is no shape: write it like input=1x3x224x224", param, ctx)
        return name, tuple(int(dim) for dim in dims.split("x"))


def stack(*decorators: Decorator) -> Decorator:
    """Apply options so that ``--help`` lists them in the order given here."""

    def apply(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def data_options(*, required: bool = False) -> Decorator:
    """Samples, labels and how images become tensors."""
    return stack(
        click.option(
            "--data",
            metavar="PATH",
            required=required,
            help="Samples: an .npz, an image folder, a folder of .npz feeds, module:callable, or 'synthetic'.",
        ),
        click.option(
            "--preprocess",
            metavar="SPEC",
            help="How images become tensors, e.g. resize=256,crop=224,scale=1/255,mean=0.5/0.5/0.5,std=0.5/0.5/0.5.",
        ),
        click.option("--eval-data", metavar="PATH", help="Labelled samples to measure accuracy on, kept apart."),
        click.option("--calib-samples", metavar="N", type=click.IntRange(1), default=512, show_default=True),
        click.option("--eval-samples", metavar="N", type=click.IntRange(1), help="[default: all]"),
    )


def metric_option() -> Decorator:
    """How accuracy is measured."""
    return click.option(
        "--metric",
        metavar="NAME",
        default="top1",
        show_default=True,
        help="top1, top5, or module:callable taking (outputs, labels) and returning one number per sample.",
    )


def shape_options() -> Decorator:
    """Fixing dynamic dimensions."""
    return stack(
        click.option(
            "--shape", "shapes", multiple=True, type=ShapeOption(), help="Fix an input, e.g. input=1x3x224x224."
        ),
        click.option("--batch", metavar="N", type=click.IntRange(1), help="Fix the batch dimension of every input."),
    )


def target_option() -> Decorator:
    """Where the model will run."""
    names = [target.name for target in TARGETS]
    return click.option(
        "--target",
        metavar="NAME",
        default=DEFAULT_TARGET.name,
        show_default=True,
        help=f"Where the model will run: {', '.join(names)}.",
    )


def device_option() -> Decorator:
    """Where to measure besides this machine."""
    return click.option(
        "--device",
        "devices",
        metavar="NAME",
        multiple=True,
        help="Where else to measure: arm[:CPU], android[:SERIAL], web, qnn; may be given more than once.  "
        "[default: host]",
    )


def common_options() -> Decorator:
    """Seed, threads and what is printed."""
    return stack(
        click.option(
            "--seed", metavar="N", type=int, default=0, show_default=True, help="Repeats every random choice."
        ),
        click.option(
            "--threads", metavar="N", type=click.IntRange(1), help="Threads for long work.  [default: one per core]"
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        click.option("-q", "--quiet", is_flag=True, help="Print complaints only."),
        click.option("-v", "--verbose", is_flag=True, help="Print what happens on the way, and tracebacks."),
    )


def report_option() -> Decorator:
    """Where reports are written."""
    return click.option(
        "--report",
        "reports",
        metavar="PATH",
        multiple=True,
        type=click.Path(path_type=Path),
        help="Write the report as .html, .json or .md; may be given more than once.",
    )
