"""``onnxslim``: the group of commands, and the one place where errors become exit codes.

0 done, or the gate passed; 1 the gate failed or a budget was missed; 2 bad usage or bad input; 3 inconclusive;
4 internal error; 130 interrupted.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence

import click

from onnxslim.cli.output import Output
from onnxslim.cli.supervision import supervised
from onnxslim.errors import OnnxslimError, one_line

COMMANDS = ("optimize", "inspect", "validate", "bench", "gate", "passes", "device")
INTERRUPTED = 130
INTERNAL = 4


class LazyGroup(click.Group):
    """Imports a command's module only when that command is asked for, so that ``--help`` comes at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        import importlib

        module = importlib.import_module(f"onnxslim.cli.{cmd_name}_command")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or complain with the nearest name."""
        import difflib

        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(COMMANDS)}"
            raise click.UsageError(f"no command {name!r}: {hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with:  onnxslim optimize model.onnx -o small.onnx --data samples/",
)
@click.version_option(package_name="onnxslim-mobile", prog_name="onnxslim")
def group() -> None:
    """Make any ONNX model ready for mobile, and prove that it still works."""


def run() -> int:
    """Entry point of the installed commands: the command line, watched over by a process of its own."""
    return supervised(main)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code.

    Args:
        argv: the arguments after the program's name; None takes the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = any(a == "--verbose" or (a.startswith("-v") and set(a[1:]) == {"v"}) for a in arguments)
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format="onnxslim: %(message)s")
    try:
        result = group.main(arguments, prog_name="onnxslim", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        return _complain(_usage_line(error), 2)
    except (click.Abort, KeyboardInterrupt):
        return _complain("interrupted: nothing was written", INTERRUPTED)
    except BrokenPipeError:
        return 0
    except OnnxslimError as error:
        if error.exit_code == INTERNAL and verbose:
            traceback.print_exc()
        return _complain(one_line(error), error.exit_code)
    except Exception as error:  # the last resort: one line for people, the traceback for those who ask
        if verbose:
            traceback.print_exc()
        return _complain(f"internal error: {type(error).__name__}: {one_line(error)} (see it whole with -v)", INTERNAL)


def _usage_line(error: click.ClickException) -> str:
    """Return click's message as one line that ends with where to read more."""
    message = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "onnxslim"
    return f"{message.rstrip('.')} (see '{command} --help')"


def _complain(line: str, code: int) -> int:
    Output.complain(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
