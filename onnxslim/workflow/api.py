"""The Python API: one function for each command, with the command's options as arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from onnxslim.budget import Budgets, Unit, parse_limit
from onnxslim.ir import Model
from onnxslim.measure import Latency, RaceSettings, Validation
from onnxslim.policy import GateResult, Policy, judge, read_policy
from onnxslim.report.network import ModelSummary
from onnxslim.samples import Preprocess
from onnxslim.workflow.data import CALIBRATION_SAMPLES, DataLike, DataSettings
from onnxslim.workflow.evidence import collect_evidence
from onnxslim.workflow.measuring import run_bench, run_inspect, run_validate
from onnxslim.workflow.optimizing import OptimizeResult, OptimizeSettings, PassesLike, run_optimize
from onnxslim.workflow.plans import PlanFile, read_plan
from onnxslim.workflow.source import ModelLike

LimitLike = str | float | None


def load(source: str | Path | bytes | onnx.ModelProto) -> Model:
    """Load a model from a path, serialized bytes or a ModelProto.

    Raises:
        ModelError: it cannot be read or is not valid.
    """
    return Model.load(source)


def optimize(  # noqa: PLR0913  (the command's options, by name)
    model: ModelLike,
    data: DataLike | None = None,
    *,
    eval_data: DataLike | None = None,
    preprocess: str | Preprocess | None = None,
    passes: PassesLike = None,
    max_drop: LimitLike = None,
    min_sqnr: LimitLike = None,
    max_size: LimitLike = None,
    max_macs: LimitLike = None,
    max_latency: LimitLike = None,
    max_activations: LimitLike = None,
    download_limit: LimitLike = None,
    metric: str = "top1",
    target: str = "arm-cpu",
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    calib_samples: int = CALIBRATION_SAMPLES,
    eval_samples: int | None = None,
    plan: str | Path | PlanFile | None = None,
    exact: bool = True,
    bench: bool = True,
    devices: Sequence[str] = (),
    seed: int = 0,
    threads: int = 0,
) -> OptimizeResult:
    """Make ``model`` smaller and faster, and prove it. See ``onnxslim optimize --help`` for what the options mean.

    Args:
        model: a path, bytes, a ModelProto or a Model, which is not changed.
        data: samples to calibrate on: a path as for ``--data``, or Samples.
        passes: a pipeline as text or as passes; None chooses by what is given.
        max_drop: points of the metric that may be lost, e.g. ``"1%"``.
        devices: where to measure besides this machine, as ``--device`` spells them.
        threads: 0 means one per core.

    Returns:
        The new model, the report, the plan and warnings.

    Raises:
        UserError: something given cannot be used; the message says what to do.
    """
    settings = OptimizeSettings(
        data=DataSettings(data, eval_data, preprocess, calib_samples, eval_samples, seed),
        passes=passes,
        budgets=make_budgets(max_drop, min_sqnr, max_size, max_macs, max_latency, max_activations, download_limit),
        metric=metric,
        target=target,
        shapes=shapes or {},
        batch=batch,
        plan=read_plan(plan) if isinstance(plan, str | Path) else plan,
        exact=exact,
        bench=bench,
        devices=devices,
        threads=threads,
    )
    return run_optimize(model, settings)


def make_budgets(
    max_drop: LimitLike = None,
    min_sqnr: LimitLike = None,
    max_size: LimitLike = None,
    max_macs: LimitLike = None,
    max_latency: LimitLike = None,
    max_activations: LimitLike = None,
    download_limit: LimitLike = None,
) -> Budgets:
    """Read budgets as people write them.

    Raises:
        PolicyError: one cannot be understood; names the option.
    """
    return Budgets(
        max_drop=None if max_drop is None else parse_limit(max_drop, "--max-drop", Unit.RATIO),
        min_sqnr=None if min_sqnr is None else parse_limit(min_sqnr, "--min-sqnr", Unit.DECIBEL),
        max_size=None if max_size is None else parse_limit(max_size, "--max-size", Unit.BYTES, Unit.RATIO),
        max_macs=None if max_macs is None else parse_limit(max_macs, "--max-macs", Unit.COUNT, Unit.RATIO),
        max_latency=None
        if max_latency is None
        else parse_limit(max_latency, "--max-latency", Unit.MILLISECONDS, Unit.RATIO),
        max_activations=None
        if max_activations is None
        else parse_limit(max_activations, "--max-activations", Unit.BYTES, Unit.RATIO),
        download_limit=None if download_limit is None else parse_limit(download_limit, "--download-limit", Unit.BYTES),
    )


def inspect(
    model: ModelLike,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch: int | None = None,
    data: DataLike | None = None,
    preprocess: str | Preprocess | None = None,
) -> ModelSummary:
    """Return what is in ``model``: layers, bytes, MACs, activation memory."""
    return run_inspect(model, shapes or {}, batch, DataSettings(data, preprocess=preprocess))


def validate(  # noqa: PLR0913  (the command's options, by name)
    reference: ModelLike,
    candidate: ModelLike,
    data: DataLike,
    *,
    preprocess: str | Preprocess | None = None,
    metric: str = "top1",
    eval_samples: int | None = None,
    layers: bool = False,
    seed: int = 0,
    threads: int = 0,
) -> Validation:
    """Compare ``candidate`` to ``reference`` on samples; with ``layers`` also layer by layer."""
    settings = DataSettings(None, data, preprocess, eval_samples=eval_samples, seed=seed)
    return run_validate(reference, candidate, settings, metric=metric, layers=layers, threads=threads)


def bench(
    models: Sequence[ModelLike],
    *,
    data: DataLike | None = None,
    preprocess: str | Preprocess | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seconds: float = 15.0,
    seed: int = 0,
    threads: int = 1,
) -> tuple[Latency, ...]:
    """Race ``models``; the first is the baseline, and each of the others gets a result."""
    settings = DataSettings(None, data, preprocess, seed=seed)
    return run_bench(models, settings, shapes or {}, None, RaceSettings(seconds, threads, seed))


def gate(
    candidate: ModelLike,
    reference: ModelLike,
    policy: str | Path | Policy,
    *,
    data: DataLike | None = None,
    preprocess: str | Preprocess | None = None,
    metric: str = "top1",
    seed: int = 0,
    threads: int = 0,
) -> GateResult:
    """Judge ``candidate`` by a policy: a Policy, or the path of a TOML file.

    Measures only what the policy limits.
    """
    if not isinstance(policy, Policy):
        policy = load_policy(policy)
    settings = DataSettings(None, data, preprocess, seed=seed)
    return judge(policy, collect_evidence(policy, candidate, reference, settings, metric=metric, threads=threads))


def load_policy(path: str | Path) -> Policy:
    """Read a policy file.

    Raises:
        PolicyError: missing, not TOML, or with a key or limit that is not understood.
    """
    from onnxslim.errors import PolicyError

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot read the policy {path}: {error}: check the path") from None
    return read_policy(text, str(path))
