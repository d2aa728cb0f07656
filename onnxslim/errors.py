"""Every exception this package raises on purpose, in one tree.

::

    OnnxslimError                  exit code 4 unless a subclass says otherwise
    ├── UserError                  exit code 2: somebody can mend it; the message says what, where and what to do
    │   ├── ModelError             the model file or graph
    │   ├── SampleError            the samples, their labels or their preprocessing
    │   ├── SpecError              a pipeline text, a pass name or option, a plan
    │   ├── PolicyError            a gate policy or a budget
    │   ├── OutputError            a place that cannot be written
    │   └── DeviceError            a device to measure on is not there, not set up, or gave up
    └── PassError                  a pass cannot do its work on this model; the manager rolls it back and goes on

A message is one line, starts with what was found, names the place, and ends with what to do.
"""

from __future__ import annotations


class OnnxslimError(Exception):
    """Root of the tree; an instance of this class itself is an internal error."""

    exit_code = 4


class UserError(OnnxslimError):
    """Bad usage or bad input: one line that says what was found, where, and what to do."""

    exit_code = 2


class ModelError(UserError):
    """The model cannot be read, is not valid, or does not fit what is asked of it."""


class SampleError(UserError):
    """The samples, labels or preprocessing cannot be used."""


class SpecError(UserError):
    """A pipeline text, pass name, option or plan cannot be understood."""


class PolicyError(UserError):
    """A gate policy or a budget cannot be understood."""


class OutputError(UserError):
    """An output cannot be written where it was asked for."""


class DeviceError(UserError):
    """A device cannot be measured on: it is not there, not set up, or gave up."""


class PassError(OnnxslimError):
    """A pass cannot do its work on this model. Never reaches the user: the manager rolls the pass back."""


def one_line(error: BaseException) -> str:
    """Return the first informative line of any exception, without the library's own decoration."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
