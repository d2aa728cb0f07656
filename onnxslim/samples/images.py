"""Images as samples: files in a folder, and uint8 arrays that stand for images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from onnxslim.errors import SampleError, one_line
from onnxslim.samples.folder import Listing, read_labels
from onnxslim.samples.kinds import IMAGES, Backend, Feed, reason
from onnxslim.samples.preprocess import Preprocess

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_CHANNELS_LAST = (1, 3, 4)
_CHANNELS_FIRST = (1, 3)


class ImageFolder(Backend):
    """The images of a folder, each decoded when it is read."""

    def __init__(self, listing: Listing, preprocess: Preprocess) -> None:
        self.name = f"{listing.root.name}/"
        self._listing = listing
        self._preprocess = preprocess
        self._labels = read_labels(listing)

    def __len__(self) -> int:
        return len(self._listing.images)

    def read(self, index: int) -> Feed:
        """Decode and preprocess one image.

        Raises:
            SampleError: it cannot be decoded, is too large to decode safely, or is smaller than the crop.
        """
        try:
            with _open(self._listing.root / self._listing.images[index]) as image:
                return {IMAGES: self._preprocess(image)}
        except SampleError as error:
            raise SampleError(f"{self.origin(index)}: {error}") from error

    def label(self, index: int) -> int | None:
        """Return the image's class by labels.csv."""
        return self._labels.get(self._listing.images[index])

    def origin(self, index: int) -> str:
        """Return the image's name below its folder."""
        return f"{self.name}{self._listing.images[index]}"


def is_images(array: npt.NDArray[Any]) -> bool:
    """Whether an array can stand for images: uint8, NxHxW, NxHxWxC (C of 1, 3, 4) or NxCxHxW (1, 3)."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        return False
    return array.ndim == 3 or array.shape[3] in _CHANNELS_LAST or array.shape[1] in _CHANNELS_FIRST


def tensor_of_images(array: npt.NDArray[Any], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """Return uint8 images as one float32 tensor.

    Args:
        array: what :func:`is_images` accepts; RGB or RGBA order, channels last where both places fit.
        preprocess: applied to each image.
    """
    if array.ndim == 4 and array.shape[3] not in _CHANNELS_LAST:
        array = array.transpose(0, 2, 3, 1)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    return np.concatenate([preprocess(Image.fromarray(np.ascontiguousarray(pixels))) for pixels in array])


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path, formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleError(f"the image is too large to decode safely ({one_line(error)}): make it smaller") from error
    except UnidentifiedImageError as error:
        formats = ", ".join(_FORMATS)
        raise SampleError(f"the image cannot be read (it is none of {formats}): replace it or take it out") from error
    except Exception as error:  # Pillow's parsers raise whatever they trip over
        raise SampleError(f"the image cannot be read ({reason(error)}): replace it or take it out") from error
