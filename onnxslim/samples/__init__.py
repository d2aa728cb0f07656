"""Where feeds come from: files, arrays, a user's function, or a seeded generator.

Everything else in the package sees one type, :class:`Samples`: sized, lazy, the same every time it is walked.
"""

from __future__ import annotations

from onnxslim.samples.kinds import Feed, InputLike, InputSpec, Sample, Source
from onnxslim.samples.preprocess import Color, Layout, Preprocess
from onnxslim.samples.samples import Samples, Split

__all__ = [
    "Color",
    "Feed",
    "InputLike",
    "InputSpec",
    "Layout",
    "Preprocess",
    "Sample",
    "Samples",
    "Source",
    "Split",
]
