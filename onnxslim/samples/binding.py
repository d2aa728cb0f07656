"""Fitting a raw feed to what a model wants: names, uint8 images, ranks, fixed dimensions, element types.

A cast happens only where it loses nothing, or where it rounds one float to another. Integers never become floats
by themselves: pixels go through ``--preprocess``, and for anything else the user knows the scale, not we.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxslim.errors import SampleError
from onnxslim.samples.images import is_images, tensor_of_images
from onnxslim.samples.kinds import IMAGES, Feed, InputLike, times
from onnxslim.samples.preprocess import Preprocess

_EXAMPLE = "--preprocess resize=256,crop=224,scale=1/255"


def preprocessed(feed: Feed, preprocess: Preprocess | None, origin: str) -> Feed:
    """Return the feed with its uint8 images turned into float32 tensors; everything else as it is.

    Raises:
        SampleError: an array called ``images`` is uint8 of another shape, or an image does not fit.
    """
    if preprocess is None:
        return feed
    return {name: _tensor(array, name, preprocess, origin) for name, array in feed.items()}


def fitted(feed: Feed, inputs: Sequence[InputLike], origin: str) -> Feed:
    """Return the feed under the model's names, in its element types, in its order of inputs.

    A single array goes to a single input whatever either is called.

    Raises:
        SampleError: an array is missing, superfluous, or of a shape or type that the input does not take.
    """
    if len(inputs) == len(feed) == 1:
        feed = {inputs[0].name: next(iter(feed.values()))}
    names = [spec.name for spec in inputs]
    for name in names:
        if name not in feed:
            raise SampleError(_missing(name, feed, origin))
    for name in feed:
        if name not in names:
            raise SampleError(
                f"{origin} has an array {name!r}, and the model's inputs are {_listed(names)}: rename or remove it"
            )
    return {spec.name: _fit(feed[spec.name], spec, origin) for spec in inputs}


def preprocess_needed(what: str) -> SampleError:
    """Return the error for pixels without a specification."""
    return SampleError(f"{what}: say how images become tensors, as {_EXAMPLE}")


def _tensor(array: npt.NDArray[Any], name: str, preprocess: Preprocess, origin: str) -> npt.NDArray[Any]:
    if is_images(array):
        try:
            return tensor_of_images(array, preprocess)
        except SampleError as error:
            raise SampleError(f"{origin}, {name!r}: {error}") from error
    if name == IMAGES and array.dtype == np.uint8:
        raise SampleError(
            f"{origin}, {name!r} is uint8 of {times(array.shape)}: uint8 images are NxHxW, NxHxWx3 or Nx3xHxW"
        )
    return array


def _fit(array: npt.NDArray[Any], spec: InputLike, origin: str) -> npt.NDArray[Any]:
    _check_shape(array, spec, origin)
    if spec.dtype is None or array.dtype == spec.dtype:
        return np.ascontiguousarray(array) if array.ndim else array
    cast = _cast(array, spec.dtype)
    if cast is not None:
        return cast
    found = f"{origin} gives {array.dtype} for the input {spec.name!r}, which takes {spec.dtype}"
    if array.dtype == np.uint8 and spec.dtype.kind == "f":
        raise preprocess_needed(found)
    raise SampleError(f"{found}, and some values would change: store them as {spec.dtype}")


def _check_shape(array: npt.NDArray[Any], spec: InputLike, origin: str) -> None:
    if spec.shape is None:
        return
    same_rank = array.ndim == len(spec.shape)
    pairs = zip(array.shape, spec.shape, strict=False)
    if same_rank and all(not isinstance(want, int) or have == want for have, want in pairs):
        return
    raise SampleError(
        f"{origin} gives {times(array.shape)} for the input {spec.name!r}, which takes {times(spec.shape)}: "
        "bring the samples to that shape, images by resize, crop, layout or color of --preprocess"
    )


def _cast(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    """Return the array as ``dtype``, or None where that would change values by more than a float's rounding."""
    source, target = array.dtype.kind, dtype.kind
    if target in "OUT":
        return array.astype(object) if source in "UST" else None
    if source == "f" and target == "f":
        return _rounded(array, dtype)
    if source not in "biuf" or target not in "biu":
        return None
    with np.errstate(invalid="ignore"):
        cast = array.astype(dtype)
        back_again = cast.astype(array.dtype)
    if not np.array_equal(back_again, array):
        return None
    wrapped = array.size and (int(array.min()), int(array.max())) != (int(cast.min()), int(cast.max()))
    return None if wrapped else cast  # 200 as int8 is -56, which comes back as 200


def _rounded(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any] | None:
    try:
        with np.errstate(over="raise"):
            return array.astype(dtype)
    except FloatingPointError:
        return None


def _missing(name: str, feed: Feed, origin: str) -> str:
    hint = "arrays are named as the model's inputs"
    if name in ("label", "labels"):
        hint += f", and {name!r} in data means the classes: feed this model from module:callable"
    return f"{origin} has no array for the model's input {name!r} (it has {_listed(feed)}): {hint}"


def _listed(names: Sequence[str] | Feed) -> str:
    return ", ".join(map(repr, names)) or "none"
