"""What ``quantize`` runs on: networks, the images that calibrate and the others that judge, written as ``.npz``.

Arrays are preprocessed once, here, so that every tool calibrates on the same numbers and is judged on the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lossy_worker import PREPROCESS as COMMON
from PIL import Image

from onnxslim import Model, Samples
from onnxslim.errors import OnnxslimError

SEED = 0
_SETS = ("calib", "val")
PREPROCESS = {**COMMON, "faces": "resize=240x320,mean=127,std=128"}
LABELLED = ("cifar10", "imagenet")
PICTURES = "resize={height}x{width},scale=1/255,mean=0.485/0.456/0.406,std=0.229/0.224/0.225"
"""For a network of which only the size of its input is known."""


@dataclass(frozen=True)
class Case:
    """A network, its data, and its limits.

    Args:
        kind: ``cifar10`` and ``imagenet`` have labels; ``pages`` and ``faces`` are images without.
        calibrate, judge: so many images; None for all that do not calibrate.
        points: of top-1 that may be lost; None where nothing is asked.
        close: (points, agreement): so many may be lost where top-1 agrees with float's so often.
        decibels: the least SQNR.
        size: of the float file's bytes; None for what onnxruntime's file takes.
        clocked: whether seconds are compared.
    """

    model: str
    kind: str
    calibrate: int
    judge: int | None
    points: float | None = None
    close: tuple[float, float] | None = None
    decibels: float | None = None
    size: float | None = None
    clocked: bool = False
    preprocess: str | None = None


CASES = (
    Case("efficientnet_lite0", "imagenet", 100, None, points=0.5, close=(1.5, 0.97), size=0.27, clocked=True),
    Case("resnet20_cifar10", "cifar10", 256, 5000, points=0.3),
    Case("resnet56_cifar10", "cifar10", 256, 5000, points=0.3, size=0.28),
    Case("vgg11_cifar10", "cifar10", 256, 5000, points=0.3, size=0.27),
    Case("googlenet_cifar10", "cifar10", 256, 5000, points=0.3),
    Case("ppocrv4_det", "pages", 64, 50, decibels=20.0),
    Case("ultraface_rfb320", "faces", 64, 50, decibels=20.0),
)


def cases(folder: Path) -> Iterator[Case | str]:
    """Yield the networks of ``folder`` that images fit, and a line about each that is skipped."""
    known = {case.model for case in CASES}
    for case in CASES:
        if not (folder / f"{case.model}.onnx").is_file():
            yield f"{case.model}: skipped: no {case.model}.onnx in {folder}"
        elif not _images(folder, case.kind).exists():
            yield f"{case.model}: skipped: no {_images(folder, case.kind).relative_to(folder)} in {folder}"
        else:
            yield case
    for path in sorted(folder.glob("*.onnx")):
        if path.stem not in known:
            yield _other(folder, path)


def _other(folder: Path, path: Path) -> Case | str:
    """Return a case for a network nothing is known of: decibels without a limit."""
    try:
        inputs = Model.load(path).inputs
    except OnnxslimError as error:
        return f"{path.stem}: skipped: {error}"
    shape = inputs[0].shape if len(inputs) == 1 else None
    if shape is None or len(shape) != 4 or shape[1] != 3 or not all(isinstance(dim, int) for dim in shape[2:]):
        return f"{path.stem}: skipped: images fit one input of N×3×height×width only"
    kind = "pages"
    if not _images(folder, kind).exists():
        return f"{path.stem}: skipped: no {_images(folder, kind).relative_to(folder)} in {folder}"
    return Case(path.stem, kind, 64, 50, preprocess=PICTURES.format(height=shape[2], width=shape[3]))


def _images(folder: Path, kind: str) -> Path:
    return folder / "cifar10" / "calib.npz" if kind == "cifar10" else folder / "imagenet" / "calib"


def write(case: Case, folder: Path, scratch: Path) -> tuple[Path, Path]:
    """Write ``calibration.npz`` and ``evaluation.npz`` (the input's array, labels if any) to ``scratch``."""
    inputs = Model.load(folder / f"{case.model}.onnx").inputs
    places = scratch / "calibration.npz", scratch / "evaluation.npz"
    for place, parts in zip(places, _parts(case, folder), strict=True):
        bound = [sample for part in parts for sample in part.for_inputs(inputs)]
        arrays = {inputs[0].name: np.concatenate([sample.feed[inputs[0].name] for sample in bound])}
        if case.kind in LABELLED:
            arrays["labels"] = np.array([sample.label for sample in bound], np.int64)
        np.savez(place, allow_pickle=False, **arrays)
    return places


def _parts(case: Case, folder: Path) -> tuple[list[Samples], list[Samples]]:
    """Return what calibrates and what judges; no image does both."""
    place = folder / ("cifar10" if case.kind == "cifar10" else "imagenet")
    suffix = ".npz" if case.kind == "cifar10" else ""
    given = preprocess(case)
    calib, val = (Samples.from_path(place / f"{name}{suffix}", preprocess=given) for name in _SETS)
    calib = calib.shuffled(SEED)
    judges = [calib.drop(case.calibrate), val] if case.judge is None else [val.shuffled(SEED).take(case.judge)]
    return [calib.take(case.calibrate)], judges


def preprocess(case: Case) -> str:
    """Return how images become the network's input."""
    return case.preprocess or PREPROCESS[case.kind]


def many(case: Case, folder: Path, scratch: Path, count: int) -> Path:
    """Return a source of ``count`` images at least, to be read as a stream: crops of the calibration images."""
    if case.kind == "cifar10":
        return folder / "cifar10" / "calib.npz"
    place = scratch / "many"
    place.mkdir()
    sources = sorted((folder / "imagenet" / "calib").glob("*.jpg"))
    generator = np.random.default_rng(SEED)
    for index in range(count):
        with Image.open(sources[index % len(sources)]) as image:
            picture = image.convert("RGB")
        width, height = picture.width * 9 // 10, picture.height * 9 // 10
        left = int(generator.integers(0, picture.width - width + 1))
        top = int(generator.integers(0, picture.height - height + 1))
        picture.crop((left, top, left + width, top + height)).save(place / f"{index:04}.jpg", quality=90)
    return place
