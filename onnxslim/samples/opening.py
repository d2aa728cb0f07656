"""Finding out what a path holds: which of the kinds of samples, or a reason why it is none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnxslim.errors import SampleError
from onnxslim.samples.arrays import ArrayBackend, FeedFiles
from onnxslim.samples.binding import preprocess_needed
from onnxslim.samples.folder import scan
from onnxslim.samples.generated import FunctionBackend, load_function
from onnxslim.samples.images import ImageFolder
from onnxslim.samples.kinds import IMAGES, LABELS, Backend, Column
from onnxslim.samples.npz import read_columns
from onnxslim.samples.preprocess import Preprocess

SYNTHETIC = "synthetic"
_FUNCTION = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


def open_path(path: str | Path, preprocess: Preprocess | None) -> Backend:
    """Open a file, a folder or ``module:callable``; decodes nothing.

    Raises:
        SampleError: nothing is there, it is no samples, or images come without ``preprocess``.
    """
    place = Path(path)
    if place.is_dir():
        return _open_folder(place, preprocess)
    if place.is_file():
        return _open_file(place, preprocess)
    if _FUNCTION.fullmatch(str(path)):
        return FunctionBackend(load_function(str(path)), str(path))
    raise SampleError(
        f"no samples at {str(path)!r}: give an .npz, a folder of images or .npz feeds, module:callable, "
        f"or {SYNTHETIC!r}"
    )


def _open_file(path: Path, preprocess: Preprocess | None) -> Backend:
    if path.suffix.lower() != ".npz":
        raise SampleError(f"{path.name} is not samples: give an .npz (numpy.savez), or a folder of images")
    columns = read_columns(path, path.name)
    labels = columns.pop(LABELS, None)
    return open_arrays(columns, labels, path.name, preprocess)


def _open_folder(path: Path, preprocess: Preprocess | None) -> Backend:
    listing = scan(path)
    name = listing.root.name
    if listing.images and listing.feeds:
        raise SampleError(f"{name}/ holds both images and .npz files: keep one kind")
    if listing.feeds:
        return FeedFiles(listing)
    if not listing.images:
        raise SampleError(f"{name}/ holds no sample: put images (jpg, png, …) or .npz feeds in it")
    if preprocess is None:
        raise preprocess_needed(f"{name}/ holds {len(listing.images)} images")
    return ImageFolder(listing, preprocess)


def open_arrays(
    columns: Mapping[str, Column], labels: Column | None, name: str, preprocess: Preprocess | None
) -> Backend:
    """Open arrays by name.

    Raises:
        SampleError: they do not fit together, or ``images`` is uint8 and there is no ``preprocess``.
    """
    images = columns.get(IMAGES)
    if images is not None and images.dtype == np.uint8 and preprocess is None:
        raise preprocess_needed(f"{name}: {IMAGES!r} is uint8")
    return ArrayBackend(columns, labels, name)
