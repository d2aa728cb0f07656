"""Devices by the names that ``--device`` takes."""

from __future__ import annotations

from onnxslim.devices.base import Device
from onnxslim.errors import DeviceError

HOST = "host"
SPELLINGS = (HOST, "arm", "arm:CPU", "android", "android:SERIAL", "web", "qnn")
"""As help texts show them."""


def find_device(text: str) -> Device:
    """Return the device called ``text``: a name, and for some what follows a colon.

    Raises:
        DeviceError: no such device.
    """
    name, _, detail = text.partition(":")
    if name == "arm":
        from onnxslim.devices.arm import ArmDevice

        return ArmDevice(detail)
    if name == "android":
        from onnxslim.devices.android import AndroidDevice

        return AndroidDevice(detail or None)
    if name == "web" and not detail:
        from onnxslim.devices.web import WebDevice

        return WebDevice()
    if name == "qnn" and not detail:
        from onnxslim.devices.qnn import QnnDevice

        return QnnDevice()
    raise DeviceError(f"no such device: {text}: choose {', '.join(SPELLINGS)}")
