"""onnxruntime comes in here and nowhere else: sessions, taps, folding, profiles, ORT format.

Official onnxruntime wheels send telemetry from a background thread unless told not to before the first import;
it would leave this machine and disturb timing, so this package tells them.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from onnxslim.runtime.loops import IMPATIENT, PATIENT
from onnxslim.runtime.sessions import (
    Feed,
    Level,
    ModelData,
    Reading,
    RuntimeRefusal,
    Session,
    SessionConfig,
    load_proto,
    with_outputs,
)

__all__ = [
    "IMPATIENT",
    "PATIENT",
    "Feed",
    "Level",
    "ModelData",
    "Reading",
    "RuntimeRefusal",
    "Session",
    "SessionConfig",
    "load_proto",
    "with_outputs",
]
