"""Convolutions that end in sequences: text recognition, as in CRNN."""

from __future__ import annotations

import onnx

from tools.gallery.builder import Builder


def _columns(b: Builder) -> str:
    """Return features of shape (columns, batch, channels): one row of pixels is left."""
    x = b.pool(b.conv_norm_relu(b.input, 8))
    x = b.pool(b.conv_norm_relu(x, 12))
    x = b.conv_norm_relu(x, 16, (4, 3), (4, 1), pad=(0, 1))
    return b.transpose(b.squeeze(x, 2), 2, 0, 1)


def _recurrent(b: Builder, op: str, x: str, hidden: int, gates: int, **attributes: int) -> str:
    """Add a bidirectional layer as torch does: directions beside each other at last."""
    with b.module(op.lower()):
        weights = [
            b.normal(2, gates * hidden, b.width(x, -1), fan=2 * b.width(x, -1), name="W"),
            b.normal(2, gates * hidden, hidden, fan=2 * hidden, name="R"),
            b.weight(b.random.uniform(-0.2, 0.2, (2, 2 * gates * hidden)), "B"),
        ]
        y = b.ops(op, x, *weights, outputs=1, direction="bidirectional", hidden_size=hidden, **attributes)[0]
        return b.reshape(b.transpose(y, 0, 2, 1, 3), 0, 0, 2 * hidden)


def crnn() -> onnx.ModelProto:
    """CRNN (Shi et al. 2017): convolutions, two bidirectional LSTM layers, classes for each column."""
    b = Builder(1, 16, 48)
    x = _recurrent(b, "LSTM", _columns(b), 10, 4)
    x = _recurrent(b, "LSTM", b.linear(x, 14), 8, 4)
    return b.build(b.op("LogSoftmax", b.linear(x, 12), axis=2))


def crnn_gru() -> onnx.ModelProto:
    """The same with GRU and torch's order of reset and product; opset 12."""
    b = Builder(1, 16, 48, opset=12)
    x = _recurrent(b, "GRU", _columns(b), 10, 3, linear_before_reset=1)
    return b.build(b.op("Softmax", b.transpose(b.linear(x, 12), 1, 0, 2), axis=2))
