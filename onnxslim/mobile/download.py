"""What a model adds to an app's download: its bytes as stores deliver them, beside the limit above which they ask.

Stores compress what they deliver (an APK and an IPA are ZIP archives: deflate), so a file of integers in few bits is
smaller on the way than on the disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from onnxslim.ir.loading import locations, total_bytes
from onnxslim.runtime import ModelData

LIMIT = 200_000_000
"""Bytes of an app above which a phone asks before it uses the mobile network.

Apple: iOS 13 (September 2019) and later ask "over 200 MB" by default (Settings, App Store, App Downloads). Google Play:
users on a mobile network are advised to wait for Wi-Fi above 200 MB ("Reduce your app size", Android developers, 2025).
"""
MOST = 1 << 30
"""Bytes of a model that are compressed to see; larger ones are beyond every limit anyway."""
_CHUNK = 1 << 20


def download_bytes(data: ModelData) -> int | None:
    """Return the deflated size of a model's files, external data included; None for one that is too large to try."""
    if (len(data) if isinstance(data, bytes) else total_bytes(data)) > MOST:
        return None
    if isinstance(data, bytes):
        return _deflated(data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))
    return sum(_deflated(_chunks(path)) for path in (data, *(data.parent / name for name in sorted(locations(data)))))


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _deflated(chunks: Iterator[bytes]) -> int:
    packer = zlib.compressobj(6)
    return sum(len(packer.compress(chunk)) for chunk in chunks) + len(packer.flush())
