"""Runs inside the emulator: counts a job's models, with nothing but onnxruntime and numpy.

Reads ``job.json`` and the feeds beside it, and prints what happened, one JSON object a line. The clock is the plugin's:
an instruction is a microsecond. Each model is run while it is profiled, then while it is not: the first tells where
instructions go, the second how many there are.
"""

import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

PROFILED_RUNS = 2  # the first fills arenas and caches
CHEAP = 20_000_000  # instructions: models below are run more often, since what varies a little weighs more there
CHEAP_RUNS = 8


def say(**what: Any) -> None:
    """Print one object."""
    print(json.dumps(what), flush=True)  # noqa: T201


def load(model: dict[str, Any]) -> Any:
    """Return a session with one thread, profiling."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_profiling = True
    options.profile_file_prefix = model["name"]
    if not model["optimized"]:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source: str | bytes = model["file"]
    if model["data_folder"]:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", model["data_folder"])
        source = Path(model["file"]).read_bytes()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def read_feed(model: dict[str, Any], session: Any) -> dict[str, Any]:
    """Return those of the stored arrays that the model takes."""
    wanted = {value.name for value in session.get_inputs()}
    with np.load(model["feed"], allow_pickle=False) as stored:
        return {name: stored[f"arr_{i}"] for i, name in enumerate(model["inputs"]) if name in wanted}


def timed(session: Any, feed: dict[str, Any]) -> tuple[list[int], Any]:
    """Run once; return the clock before and after in nanoseconds, and what came out."""
    start = time.clock_gettime_ns(time.CLOCK_REALTIME)
    values = session.run(None, feed)
    return [start, time.clock_gettime_ns(time.CLOCK_REALTIME)], values


def run(model: dict[str, Any], session: Any) -> tuple[dict[str, Any], Any]:
    """Return the clock's readings around all runs and where the profile is, and the outputs of the last run."""
    feed = read_feed(model, session)
    profiled, plain = [], []
    for _ in range(PROFILED_RUNS):
        profiled.append(timed(session, feed)[0])
        say(model=model["name"], did="run")
    began, profile = session.get_profiling_start_time_ns(), session.end_profiling()
    span, values = timed(session, feed)
    plain.append(span)
    while len(plain) < CHEAP_RUNS and (span[1] - span[0]) // 1000 < CHEAP:
        span, values = timed(session, feed)
        plain.append(span)
    return {"profiled": profiled, "plain": plain, "began": began, "profile": profile}, values


def measure(model: dict[str, Any]) -> dict[str, Any]:
    """Return all that is to be known of one model; its outputs are written, but for those that are no tensors."""
    say(model=model["name"], did="start")
    session = load(model)
    say(model=model["name"], did="load")
    found, values = run(model, session)
    named = zip((output.name for output in session.get_outputs()), values, strict=True)
    arrays = {name: value for name, value in named if isinstance(value, np.ndarray)}
    plain = [value.astype(np.str_) if value.dtype == object else value for value in arrays.values()]
    file = f"{model['name']}-outputs.npz"
    np.savez(file, *plain)
    return {**found, "file": file, "outputs": list(arrays)}


def main() -> None:
    """Measure every model of the job; one that onnxruntime refuses does not keep the others from it."""
    gc.disable()  # its work would fall to whichever run it happens in
    for model in json.loads(Path("job.json").read_text(encoding="utf-8")):
        try:
            found = measure(model)
        except Exception as error:  # onnxruntime raises a family of types that share only this base
            found = {"refused": str(error)}
        say(model=model["name"], found=found)
        gc.collect()


main()
