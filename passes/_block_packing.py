"""Small unsigned integers as com.microsoft's MatMulNBits stores them: several in a byte, the first lowest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def packed(values: Bytes, bits: int) -> Bytes:
    """Return integers below 2^``bits``, of shape (…, n), in shape (…, ceil(n · bits / 8)); gaps are zeros.

    Args:
        values: what to pack.
        bits: 2, 4 or 8.
    """
    each = 8 // bits
    missing = -values.shape[-1] % each
    filled = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, missing)])
    parts = filled.reshape(*values.shape[:-1], -1, each)
    shifted = parts << (np.arange(each, dtype=np.uint8) * np.uint8(bits))
    return np.asarray(np.bitwise_or.reduce(shifted, axis=-1), np.uint8)


def unpacked(data: Bytes, bits: int, count: int) -> Bytes:
    """Return the first ``count`` integers of each row: the inverse of :func:`packed`."""
    each = 8 // bits
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    parts = (data[..., None] >> shifts) & np.uint8(2**bits - 1)
    return parts.reshape(*data.shape[:-1], -1)[..., :count].astype(np.uint8)
