"""PyPI's ``onnxslim`` is another project with our import name and our command; the two overwrite each other's files."""

from __future__ import annotations

from importlib import metadata

ADVICE = (
    "another project's 'onnxslim' {version} is installed in this environment and shares our import name: run "
    "'pip uninstall -y onnxslim onnxslim-mobile' and then install onnxslim-mobile again, or use two environments"
)


def other_onnxslim() -> str | None:
    """Return the version of the other project if it is installed here, otherwise None."""
    try:
        return metadata.version("onnxslim")
    except metadata.PackageNotFoundError:
        return None


def refuse_other_onnxslim() -> None:
    """Refuse to run beside the other project.

    Raises:
        ImportError: it is installed; the message says how to get out of it.
    """
    version = other_onnxslim()
    if version is not None:
        raise ImportError(ADVICE.format(version=version))
