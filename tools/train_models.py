"""Train the small networks in ``models/``: classic mobile shapes on scikit-learn's digits.

``python tools/train_models.py`` trains all five on one core in a few minutes and writes the ONNX files, the calibration
and evaluation samples, and the manifest. Needs the extra ``train``: ``pip install -e '.[train]'``. The same versions of
PyTorch and NumPy on the same kind of processor write the same bytes again.
"""
# torch is an optional extra: the file must type-check with it and without it.
# mypy: allow-subclassing-any, allow-untyped-calls

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it when it is first imported

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import torch
from sklearn.datasets import load_digits
from torch import nn

SEED = 0
SIZE = 32
CLASSES = 10
SPLITS = {"train": 1097, "calib": 300, "eval": 400}
EPOCHS = 24
BATCH = 64

Array = npt.NDArray[Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Train, export and describe the models; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("models"), help="where to write (default models)")
    parser.add_argument("--only", choices=sorted(NETWORKS), help="train one network and leave the others as they are")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    splits = split_digits()
    files = [save_samples(args.out / f"digits_{name}.npz", *splits[name]) for name in ("calib", "eval")]
    for name in [args.only] if args.only else NETWORKS:
        loss = train_and_export(name, splits["train"], args.out / f"{name}.onnx")
        print(f"{name}: training loss {loss:.4f}", file=sys.stderr, flush=True)
    present = [name for name in NETWORKS if (args.out / f"{name}.onnx").is_file()]
    models = [describe(args.out / f"{name}.onnx", *splits["eval"]) for name in present]
    (args.out / "manifest.json").write_text(json.dumps({"models": models, "data": files}, indent=2) + "\n")
    for model in models:
        print("{file:16} {accuracy:.2%} {parameters:9,} parameters {bytes:9,} bytes".format_map(model))
    return 0


# ---- data ----------------------------------------------------------------------------------------------------


def split_digits() -> dict[str, tuple[Array, Array]]:
    """Return disjoint, shuffled splits: images N x 1 x 32 x 32 in multiples of 1/255, labels N."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16.0
    images = nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    pixels = (np.round(images.numpy() * 255) / np.float32(255)).astype(np.float32)
    order = np.random.default_rng(SEED).permutation(len(pixels))
    splits, start = {}, 0
    for name, count in SPLITS.items():
        chosen = order[start : start + count]
        splits[name] = pixels[chosen], digits.target[chosen].astype(np.int64)
        start += count
    return splits


def save_samples(path: Path, images: Array, labels: Array) -> dict[str, Any]:
    """Write an .npz and return its manifest entry."""
    np.savez_compressed(path, images=images, labels=labels)
    return {
        "file": path.name,
        "count": len(labels),
        "bytes": path.stat().st_size,
        "sha256": digest(path),
        "source": "E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (scikit-learn's copy)",
        "licence": "CC-BY-4.0",
    }


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each image by up to three pixels, with zeros moving in, and add a little noise."""
    padded = nn.functional.pad(images, (3, 3, 3, 3))
    offsets = torch.randint(0, 7, (len(images), 2), generator=generator).tolist()
    shifted = [image[:, y : y + SIZE, x : x + SIZE] for image, (y, x) in zip(padded, offsets, strict=True)]
    return torch.stack(shifted) + 0.05 * torch.randn(images.shape, generator=generator)


# ---- networks ------------------------------------------------------------------------------------------------


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch normalization, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def vgg() -> nn.Module:
    """Plain 3x3 convolutions and then large fully connected layers, which hold most of the bytes."""
    return nn.Sequential(
        conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.MaxPool2d(2), conv(32, 32), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 16, 256), nn.ReLU(), nn.Dropout(0.4),
        nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, CLASSES),
    )  # fmt: skip


def nin() -> nn.Module:
    """Network-in-Network: 1x1 convolutions follow each kxk one, and a global average ends it."""
    return nn.Sequential(
        conv(1, 24, 5), conv(24, 24, 1), conv(24, 24, 1), nn.MaxPool2d(2),
        conv(24, 48, 5), conv(48, 48, 1), conv(48, 48, 1), nn.MaxPool2d(2),
        conv(48, 48, 3), conv(48, 48, 1), conv(48, 48, 1), nn.MaxPool2d(2),
        conv(48, 64, 3), conv(64, 64, 1), conv(64, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class InceptionModule(nn.Module):
    """Four branches side by side: 1x1, 3x3, 5x5 and pooling."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.one = conv(inputs, width, 1)
        self.three = nn.Sequential(conv(inputs, width, 1), conv(width, 2 * width, 3))
        self.five = nn.Sequential(conv(inputs, width // 2, 1), conv(width // 2, width, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(inputs, width, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Concatenate the branches over channels."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


def inception() -> nn.Module:
    """Inception modules between pooling: four parallel branches of convolutions meet in a concatenation."""
    return nn.Sequential(
        conv(1, 24), nn.MaxPool2d(2), InceptionModule(24, 16), nn.MaxPool2d(2), InceptionModule(80, 16),
        nn.MaxPool2d(2), InceptionModule(80, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(160, CLASSES),
    )  # fmt: skip


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv(inputs, outputs, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = nn.Identity()
        if not same:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the shortcut before the last ReLU."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet() -> nn.Module:
    """Residual blocks in three stages, the shortcut projected by a 1x1 convolution where the size changes."""
    return nn.Sequential(
        conv(1, 16), nn.MaxPool2d(2),
        Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 32, 1), Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; ReLU6 between."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        width = inputs * expand
        self.residual = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), nn.BatchNorm2d(width), nn.ReLU6(),
            nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the input where the shape is kept."""
        y: torch.Tensor = self.body(x)
        return x + y if self.residual else y


def mobilenet() -> nn.Module:
    """MobileNetV2's inverted residuals: 1x1 expansion, depthwise 3x3 convolution, 1x1 projection, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
        InvertedResidual(16, 16, 1, 4), InvertedResidual(16, 24, 2, 4), InvertedResidual(24, 24, 1, 4),
        InvertedResidual(24, 32, 2, 4), InvertedResidual(32, 32, 1, 4), InvertedResidual(32, 48, 1, 4),
        nn.Conv2d(48, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg,
    "nin": nin,
    "inception": inception,
    "resnet": resnet,
    "mobilenet": mobilenet,
}


# ---- training and export -------------------------------------------------------------------------------------


def train_and_export(name: str, data: tuple[Array, Array], path: Path) -> float:
    """Train one network, write it to ``path`` and return the loss of the last batch."""
    torch.manual_seed(SEED)
    network = NETWORKS[name]()
    loss = train(network, torch.from_numpy(data[0]), torch.from_numpy(data[1]))
    export(network.eval(), path)
    return loss


def train(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Minimize cross entropy with Adam and one cycle of the learning rate; return the loss of the last batch."""
    generator = torch.Generator().manual_seed(SEED)
    batches = len(images) // BATCH
    optimizer = torch.optim.Adam(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.006, total_steps=EPOCHS * batches)
    network.train()
    loss = torch.zeros(())
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for batch in order[: batches * BATCH].split(BATCH):
            logits = network(augment(images[batch], generator))
            loss = nn.functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return float(loss.item())


def export(network: nn.Module, path: Path) -> None:
    """Write ``network`` to ``path`` with a dynamic batch: batch normalization unfused, constants unfolded."""
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated; the newer one already optimizes, and these are to be optimized.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network,
            (torch.zeros(1, 1, SIZE, SIZE),),
            str(path),
            dynamo=False,
            opset_version=17,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fuse BatchNormalization into Conv
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )


# ---- manifest ------------------------------------------------------------------------------------------------


def describe(path: Path, images: Array, labels: Array) -> dict[str, Any]:
    """Return a model's manifest entry, its accuracy measured in onnxruntime."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(None, {"input": images})[0])
    weights = onnx.load(path).graph.initializer
    return {
        "file": path.name,
        "what": NETWORKS[path.stem].__doc__,
        "script": "tools/train_models.py",
        "seed": SEED,
        "accuracy": round(float((logits.argmax(1) == labels).mean()), 4),
        "parameters": sum(math.prod(tensor.dims) for tensor in weights),
        "bytes": path.stat().st_size,
        "sha256": digest(path),
        "licence": "Apache-2.0",
    }


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
