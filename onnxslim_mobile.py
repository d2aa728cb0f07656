"""The command ``onnxslim-mobile``: the same as ``onnxslim``, from a module the other ``onnxslim`` cannot overwrite.

PyPI holds another project whose import name and command are ``onnxslim`` too. Installed beside ours it replaces our
files or is replaced by them; this module lies outside the package, so it always runs, and checks first.
"""

from __future__ import annotations

import sys
from importlib import metadata


def run() -> int:
    """Check that ``import onnxslim`` means us, then run the command line; return the exit code."""
    try:
        version = metadata.version("onnxslim")
    except metadata.PackageNotFoundError:
        from onnxslim.cli.main import run as run_command

        return run_command()
    sys.stderr.write(
        f"onnxslim-mobile: another project's 'onnxslim' {version} is installed in this environment and shares our "
        "import name: run 'pip uninstall -y onnxslim onnxslim-mobile' and then install onnxslim-mobile again, "
        "or use two environments\n"
    )
    return 2


if __name__ == "__main__":
    sys.exit(run())
