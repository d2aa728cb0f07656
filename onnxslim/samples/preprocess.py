"""How an image becomes a tensor: resize, crop, then ``(x * scale - mean) / std``, always in that order.

Resizing is bilinear with antialias (Pillow's BILINEAR widens its filter when it shrinks). A single number is
the short side, and the long side is rounded to the nearest pixel; the crop is central, with half pixels rounded
as torchvision's CenterCrop rounds them. EXIF orientation is applied first, alpha is dropped.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from onnxslim.errors import SampleError
from onnxslim.samples import spec
from onnxslim.samples.kinds import reason

_MAX_PIXELS = 1 << 26
"""Largest image after resizing: a sliver of one pixel's width would otherwise grow without bound."""


class Layout(enum.StrEnum):
    """Where the channels stand in the tensor."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class Color(enum.StrEnum):
    """Which channels the tensor has, in which order."""

    RGB = "RGB"
    BGR = "BGR"
    GRAY = "GRAY"


Size = tuple[int, int]


@dataclass(frozen=True)
class Preprocess:
    """A preprocessing specification; ``str()`` gives text that :meth:`parse` reads back as an equal object.

    Raises:
        SampleError: a value is out of range, or the crop cannot fit into what is resized.
    """

    resize: int | Size | None = None
    """The short side in pixels, or (height, width)."""
    crop: int | Size | None = None
    """A centred square's side in pixels, or (height, width)."""
    scale: tuple[float, ...] = (1.0,)
    """Factor on pixels of 0 to 255, one for all channels or one per channel in the order of ``color``."""
    mean: tuple[float, ...] = (0.0,)
    """Subtracted after scaling, one value or one per channel."""
    std: tuple[float, ...] = (1.0,)
    """Divided by at the end, one value or one per channel."""
    layout: Layout = Layout.NCHW
    color: Color = Color.RGB

    def __post_init__(self) -> None:
        spec.check_size("resize", self.resize)
        spec.check_size("crop", self.crop)
        for key in ("scale", "mean", "std"):
            spec.check_values(key, getattr(self, key), channels=self.channels)
        self._check_crop_fits()

    @classmethod
    def parse(cls, text: str) -> Preprocess:
        """Read ``resize=256,crop=224,scale=1/255,mean=…,std=…,layout=NCHW,color=RGB``; every key is optional.

        Raises:
            SampleError: an unknown or repeated key, a value that cannot be read, or nothing at all.
        """
        fields = {key: _READERS[key](key, value) for key, value in spec.pairs(text, tuple(_READERS))}
        return cls(**fields)

    def __str__(self) -> str:
        sizes = [(key, getattr(self, key)) for key in ("resize", "crop")]
        parts = [f"{key}={spec.size_text(size)}" for key, size in sizes if size is not None]
        for key, neutral in (("scale", 1.0), ("mean", 0.0), ("std", 1.0)):
            values = getattr(self, key)
            write = spec.scale_text if key == "scale" else spec.values_text
            parts += [f"{key}={write(values)}"] if values != (neutral,) else []
        return ",".join([*parts, f"layout={self.layout}", f"color={self.color}"])

    @property
    def channels(self) -> int:
        """Number of channels of the tensor."""
        return 1 if self.color is Color.GRAY else 3

    def __call__(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return the image as a float32 tensor, 1xCxHxW or 1xHxWxC.

        Raises:
            SampleError: Pillow cannot decode it, its pixels are deeper than 8 bits, or the crop is larger.
        """
        image = self._cropped(self._resized(_coloured(_upright(image), self.color)))
        pixels = np.asarray(image, dtype=np.float32).reshape(image.height, image.width, self.channels)
        if self.color is Color.BGR:
            pixels = pixels[..., ::-1]
        scale, mean, std = (np.asarray(v, dtype=np.float32) for v in (self.scale, self.mean, self.std))
        values = (pixels * scale - mean) / std
        if self.layout is Layout.NCHW:
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[np.newaxis], dtype=np.float32)

    def _resized(self, image: Image.Image) -> Image.Image:
        if self.resize is None:
            return image
        height, width = self.resize if isinstance(self.resize, tuple) else _short_side(image, self.resize)
        if height * width > _MAX_PIXELS:
            raise SampleError(
                f"an image of {image.height}x{image.width} would become {height}x{width} by resize={self.resize}: "
                "give both sides as resize=HxW"
            )
        if image.size == (width, height):
            return image
        return image.resize((width, height), Image.Resampling.BILINEAR)

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.crop is None:
            return image
        height, width = spec.both_sides(self.crop)
        if height > image.height or width > image.width:
            raise SampleError(
                f"crop={spec.size_text(self.crop)} is larger than the image of {image.height}x{image.width}: "
                "resize it first, or crop less"
            )
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        return image.crop((left, top, left + width, top + height))

    def _check_crop_fits(self) -> None:
        if self.resize is None or self.crop is None:
            return
        crop, room = spec.both_sides(self.crop), spec.both_sides(self.resize)
        one_side = isinstance(self.resize, int)  # the other side depends on the image
        fits = min(crop) <= room[0] if one_side else crop[0] <= room[0] and crop[1] <= room[1]
        if not fits:
            raise SampleError(
                f"crop={spec.size_text(self.crop)} does not fit into resize={spec.size_text(self.resize)}: "
                "resize to more, or crop less"
            )


_READERS = {
    "resize": spec.read_size,
    "crop": spec.read_size,
    "scale": spec.read_scale,
    "mean": spec.read_values,
    "std": spec.read_values,
    "layout": spec.reader_of(Layout),
    "color": spec.reader_of(Color),
}


def _short_side(image: Image.Image, side: int) -> Size:
    """Return (height, width) with the short side ``side`` and the long one rounded to the nearest pixel."""
    short = min(image.size)
    height, width = ((2 * length * side + short) // (2 * short) for length in (image.height, image.width))
    return height, width


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # this decodes the file, and Pillow's parsers raise whatever they trip over
        raise SampleError(f"the image cannot be decoded ({reason(error)}): replace it or take it out") from error


def _coloured(image: Image.Image, color: Color) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to 255 without a word
        raise SampleError(
            f"the image has pixels of mode {image.mode!r}, deeper than 8 bits: save it with 8 bits per channel"
        )
    mode = "L" if color is Color.GRAY else "RGB"
    try:
        return image if image.mode == mode else image.convert(mode)
    except ValueError as error:
        raise SampleError(f"the image's colours are not read ({error}): save it as RGB") from error
