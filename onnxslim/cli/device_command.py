"""``onnxslim device``: places to measure on beside this machine, and what each takes."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.table import Table

from onnxslim.cli.output import Output
from onnxslim.devices.finding import HOST, find_device

DEVICES = {
    "arm": "instructions of each layer on ARM processors, counted in an emulator; everything is fetched",
    "android": "time on a phone with USB debugging on; yours are the phone, adb and onnxruntime_perf_test",
    "web": "time in a browser; onnxruntime-web is fetched, yours are Chromium and npm",
    "qnn": "placement and numbers on Qualcomm's NPU, emulated; yours is the package onnxruntime-qnn",
}
"""What each of the devices tells, and what it takes, by the name that --device takes."""


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Prepare the devices that models are measured on."""


@command.command("setup", epilog="\b\nExamples:\n  onnxslim device setup arm\n  onnxslim device setup android:SERIAL")
@click.argument("name", metavar="NAME")
@click.option("-q", "--quiet", is_flag=True, help="Print complaints only.")
@click.option("-v", "--verbose", is_flag=True, help="Print tracebacks.")
def setup(name: str, quiet: bool, **_: Any) -> None:
    """Fetch what device NAME takes, and check that it is there.

    What is fetched goes into the user's cache folder, or the one that ONNXSLIM_CACHE names; nothing is installed, and
    no root is needed. Where everything is there already, it is checked, and only what is broken is fetched again.
    """
    output = Output(quiet=quiet)
    with output.progress() as progress:
        if name != HOST:
            find_device(name).setup(progress)
    output.show(f"{name} is ready: onnxslim bench MODEL... --device {name}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def show(as_json: bool) -> None:
    """List the devices, what they tell, and what they take."""
    output = Output(as_json=as_json)
    if as_json:
        output.json(json.dumps([{"name": name, "summary": summary} for name, summary in DEVICES.items()], indent=2))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("device", no_wrap=True)
    table.add_column("what it tells, and what it takes")
    for name, summary in DEVICES.items():
        table.add_row(name, summary)
    output.show(table)
