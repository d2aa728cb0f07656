"""Places other than this process's own CPU where models are measured: emulated, attached, or in a browser.

Each device is one module. It says in one line what is missing and how to get it, runs the models interleaved, and never
calls a count a time.
"""

from __future__ import annotations

from onnxslim.devices.base import Device, DeviceResult, Job, LayerCount, Side

__all__ = ["Device", "DeviceResult", "Job", "LayerCount", "Side"]
