"""Which samples calibrate and which judge. They are kept apart wherever there are enough of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxslim.errors import SampleError
from onnxslim.ir import Model
from onnxslim.samples import Preprocess, Samples

DataLike = str | Path | Samples

CALIBRATION_SAMPLES = 512
"""Samples used for calibration unless told otherwise."""


@dataclass(frozen=True)
class SampleSets:
    """Samples bound to a model's inputs."""

    calibration: Samples | None
    """None when the user gave no samples."""
    evaluation: Samples
    held_out: bool | None
    """Whether none of ``evaluation`` calibrated; None where nothing calibrates."""


@dataclass(frozen=True)
class DataSettings:
    """The data options that several commands share; see ``onnxslim optimize --help``."""

    data: DataLike | None = None
    eval_data: DataLike | None = None
    preprocess: str | Preprocess | None = None
    calib_samples: int = CALIBRATION_SAMPLES
    eval_samples: int | None = None
    seed: int = 0


def gather(model: Model, settings: DataSettings) -> SampleSets:
    """Read, bind to ``model``, shuffle and split the samples that ``settings`` name.

    Raises:
        SampleError: samples that cannot be read or do not fit the model's inputs.
    """
    if settings.calib_samples < 1 or (settings.eval_samples is not None and settings.eval_samples < 1):
        raise SampleError("--calib-samples and --eval-samples must be at least 1: give a positive number")
    calibration = _read(settings.data, model, settings)
    evaluation = _read(settings.eval_data, model, settings)
    if evaluation is not None:
        held_out = None if calibration is None else settings.data != settings.eval_data
    elif calibration is not None:
        split = calibration.split(0.8, settings.seed)
        calibration, evaluation, held_out = split.calibration, split.evaluation, split.held_out
    else:
        evaluation, held_out = Samples.synthetic(model.inputs, seed=settings.seed), None
    return SampleSets(
        None if calibration is None else calibration.take(settings.calib_samples),
        evaluation if settings.eval_samples is None else evaluation.take(settings.eval_samples),
        held_out,
    )


def _read(source: DataLike | None, model: Model, settings: DataSettings) -> Samples | None:
    if source is None:
        return None
    if not isinstance(source, Samples):
        source = Samples.from_path(source, preprocess=settings.preprocess, seed=settings.seed)
    return source.for_inputs(model.inputs).shuffled(settings.seed)
