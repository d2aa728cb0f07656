"""Transformers for images, and the convolutions that learned from them."""

from __future__ import annotations

import numpy as np
import onnx

from tools.gallery.builder import Builder


def _mlp(b: Builder, x: str, factor: int = 4) -> str:
    with b.module("mlp"):
        width = b.width(x, -1)
        return b.linear(b.gelu(b.linear(x, factor * width)), width)


def _weighted(b: Builder, query: str, key: str, value: str, scale: float, bias: str | None = None) -> str:
    """Add scaled dot products, Softmax and the product with the values, of (…, tokens, width) each."""
    scores = b.op("Mul", b.op("MatMul", query, key), b.literal(scale, np.float32))
    scores = scores if bias is None else b.op("Add", scores, bias)
    return b.op("MatMul", b.op("Softmax", scores, axis=-1), value)


def vit() -> onnx.ModelProto:
    """ViT (Dosovitskiy et al. 2021): patches, class token, learned positions; query, key and value apart."""
    b = Builder(3, 32, 32)
    width, heads, tokens = 32, 4, 17
    with b.module("embeddings"):
        x = b.transpose(b.reshape(b.conv(b.input, width, 8, 8, bias=True, pad=0), 0, width, 16), 0, 2, 1)
        batch = b.take(b.op("Shape", b.input), 0, 0, 1)
        target = b.op("Concat", batch, b.literal([1]), b.literal([width]), axis=0)
        token = b.op("Expand", b.normal(1, 1, width, name="cls_token"), target, shape=("batch", 1, width))
        x = b.op("Add", b.concat(token, x), b.normal(1, tokens, width, fan=16, name="position"))
    for layer in range(2):
        with b.module(f"layer.{layer}"):
            y = b.layer_norm(x)
            query, key, value = (b.reshape(b.linear(y, width), 0, tokens, heads, width // heads) for _ in range(3))
            query, value = b.transpose(query, 0, 2, 1, 3), b.transpose(value, 0, 2, 1, 3)
            y = _weighted(b, query, b.transpose(key, 0, 2, 3, 1), value, (width // heads) ** -0.5)
            y = b.linear(b.reshape(b.transpose(y, 0, 2, 1, 3), 0, tokens, width), width)
            x = b.op("Add", y, x)
            x = b.op("Add", _mlp(b, b.layer_norm(x)), x)
    first = b.op("Gather", b.layer_norm(x), b.literal(0), axis=1)
    return b.build(b.linear(first, 10))


def _rolled(b: Builder, x: str, shift: int, size: int) -> str:
    for axis in (1, 2):
        x = b.concat(b.take(x, axis, shift, size), b.take(x, axis, 0, shift), axis=axis)
    return x


def _window_attention(b: Builder, x: str, heads: int) -> str:
    """Attend within windows of 4x4, of (batch, height, width, channels): one MatMul for query, key and value."""
    _, size, _, width = (b.width(x, axis) if axis else 0 for axis in range(4))
    count, depth = size // 4, width // heads
    x = b.transpose(b.reshape(x, -1, count, 4, count, 4, width), 0, 1, 3, 2, 4, 5)
    x = b.reshape(b.linear(b.reshape(x, -1, 16, width), 3 * width), -1, 16, 3, heads, depth)
    x = b.transpose(x, 2, 0, 3, 1, 4)
    query, key, value = (b.op("Gather", x, b.literal(i), axis=0) for i in range(3))
    bias = b.normal(1, heads, 16, 16, fan=8, name="relative_position_bias")
    x = _weighted(b, query, b.transpose(key, 0, 1, 3, 2), value, depth**-0.5, bias)
    x = b.linear(b.reshape(b.transpose(x, 0, 2, 1, 3), -1, 16, width), width)
    x = b.transpose(b.reshape(x, -1, count, count, 4, 4, width), 0, 1, 3, 2, 4, 5)
    return b.reshape(x, -1, size, size, width)


def swin() -> onnx.ModelProto:
    """Swin (Liu et al. 2021): attention in windows, shifted ones in turn, four pixels merged into one."""
    b = Builder(3, 32, 32, opset=16)
    x = b.layer_norm(b.transpose(b.conv(b.input, 16, 4, 4, bias=True, pad=0), 0, 2, 3, 1))
    for stage, heads in enumerate((2, 4)):
        size = 8 // (stage + 1)
        for shift in (0, 2):
            with b.module(f"layers.{stage}.{shift}"):
                y = _rolled(b, b.layer_norm(x), shift, size) if shift else b.layer_norm(x)
                y = _window_attention(b, y, heads)
                y = _rolled(b, y, size - shift, size) if shift else y
                x = b.op("Add", x, y)
                x = b.op("Add", x, _mlp(b, b.layer_norm(x), 2))
        if not stage:
            corners = [b.take(b.take(x, 1, i, size, 2), 2, j, size, 2) for j in (0, 1) for i in (0, 1)]
            x = b.linear(b.layer_norm(b.concat(*corners, axis=3)), 2 * b.width(x, 3), bias=False)
    return b.build(b.linear(b.op("ReduceMean", b.layer_norm(x), axes=[1, 2], keepdims=0), 10))


def convnext() -> onnx.ModelProto:
    """ConvNeXt (Liu et al. 2022): 7x7 depthwise, LayerNormalization over channels at the end, layer scale."""
    b = Builder(3, 32, 32)

    def norm(x: str) -> str:
        return b.transpose(b.layer_norm(b.transpose(x, 0, 2, 3, 1)), 0, 3, 1, 2)

    x = norm(b.conv(b.input, 12, 4, 4, bias=True, pad=0))
    for stage, width in enumerate((12, 20)):
        x = b.conv(norm(x), width, 2, 2, bias=True, pad=0) if stage else x
        for block in range(2):
            with b.module(f"stages.{stage}.{block}"):
                y = b.transpose(b.conv(x, width, 7, group=width, bias=True), 0, 2, 3, 1)
                y = b.op("Mul", _mlp(b, b.layer_norm(y)), b.vector(width, "gamma", 0.2, 0.6))
                x = b.op("Add", x, b.transpose(y, 0, 3, 1, 2))
    pooled = b.op("Flatten", b.op("GlobalAveragePool", x))
    return b.build(b.linear(b.layer_norm(pooled), 10))
