"""A gallery of architectures, built in code: what every network of a family has, at a width that runs in milliseconds.

Weights are random, so nothing here can be accurate; it is for what must hold for any weights: that a rewrite is exact,
that channels are followed through every operator, that a graph survives. ``ARCHITECTURES`` names them all.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx

from tools.gallery import (
    attention,
    channels_last,
    dense,
    inception,
    mobile,
    oddities,
    plain,
    recurrent,
    resnet,
    shuffle,
)
from tools.gallery.builder import Builder
from tools.gallery.graph_builder import Literals

ARCHITECTURES: dict[str, Callable[[], onnx.ModelProto]] = {
    "vgg": plain.vgg,
    "network-in-network": plain.network_in_network,
    "squeezenet": plain.squeezenet,
    "densenet": plain.densenet,
    "prelu-face": plain.prelu_face,
    "googlenet": inception.googlenet,
    "inception-v3": inception.inception_v3,
    "inception-v4": inception.inception_v4,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet152": resnet.resnet152,
    "resnet-cifar": resnet.resnet_cifar,
    "resnext": resnet.resnext,
    "regnet": resnet.regnet,
    "mobilenet-v1": mobile.mobilenet_v1,
    "mobilenet-v2": mobile.mobilenet_v2,
    "mobilenet-v3": mobile.mobilenet_v3,
    "efficientnet": mobile.efficientnet,
    "ghostnet": mobile.ghostnet,
    "split-before-depthwise": mobile.split_before_depthwise,
    "shufflenet-v2": shuffle.shufflenet_v2,
    "shufflenet-v1": shuffle.shufflenet_v1,
    "unet": dense.unet,
    "fpn": dense.fpn,
    "yolo": dense.yolo,
    "centernet": dense.centernet,
    "segmentation": dense.segmentation,
    "old-detector": dense.old_detector,
    "super-resolution": dense.super_resolution,
    "style-transfer": dense.style_transfer,
    "spatial-attention": dense.spatial_attention,
    "crnn": recurrent.crnn,
    "crnn-gru": recurrent.crnn_gru,
    "vit": attention.vit,
    "swin": attention.swin,
    "convnext": attention.convnext,
    "tensorflow-resnet": channels_last.tensorflow_resnet,
    "tensorflow-mobilenet": channels_last.tensorflow_mobilenet,
    "group-norm": oddities.group_norm,
    "group-norm-reshaped": oddities.group_norm_reshaped,
    "audio": oddities.audio,
    "video": oddities.video,
    "tied-weights": oddities.tied_weights,
    "captured": oddities.captured,
}
"""Builders by name; each call builds the same model."""

__all__ = ["ARCHITECTURES", "Builder", "Literals"]
