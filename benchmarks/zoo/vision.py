"""The vision families that the README's table lists: tiny random `transformers` models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.zoo import _hf
from benchmarks.zoo._conv import around_groups
from benchmarks.zoo._family import Family, family, images
from benchmarks.zoo._zero import Axis, Task, Units, channels, cols, rows

DIM = 16  # width of a head, everywhere


def pixels(generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": images(generator)}


def swin_heads(model: nn.Module) -> Iterator[Units]:
    """Heads with their column in the block's own table of position biases."""
    for q, k, v, o, bias in _hf.find(model, "q_proj k_proj v_proj o_proj relative_position_bias"):
        table = Axis(bias.relative_position_bias_table, 1)
        gone = rows(q, k, block=DIM) + cols(o, block=DIM)
        yield Units(q.out_features // DIM, [rows(v, block=DIM)], [*gone, table])


def conv_norm(module: nn.Module) -> list[nn.Module]:
    """The convolution and batch norm of a `transformers` convolution layer."""
    return [module.convolution, module.normalization]


def residual_channels(stem: nn.Module, layers: list[nn.Module], classifier: nn.Module) -> Iterator[Units]:
    """Residual streams of a ResNet or RegNet. A shortcut with a convolution ends one stream and begins the next."""
    makers: list[nn.Module] = conv_norm(stem)
    readers: list[nn.Module] = []
    for layer in layers:
        readers.append(layer.layer[0].convolution)
        if not isinstance(layer.shortcut, nn.Identity):
            yield channels(makers, [*readers, layer.shortcut.convolution])
            makers, readers = conv_norm(layer.shortcut), []
        makers = makers + conv_norm(layer.layer[-1])
    yield channels(makers, [*readers, classifier])


def resnet_channels(model: nn.Module) -> Iterator[Units]:
    """Residual streams, and the channels inside each layer."""
    layers = [layer for stage in model.resnet.encoder.stages for layer in stage.layers]
    yield from residual_channels(model.resnet.embedder.embedder, layers, model.classifier[1])
    for layer in layers:
        for first, second in zip(layer.layer, layer.layer[1:], strict=False):
            yield channels(conv_norm(first), [second.convolution])


def regnet_channels(model: nn.Module) -> Iterator[Units]:
    """Residual streams; before and behind each grouped convolution; inside each squeeze-and-excitation layer."""
    layers = [layer for stage in model.regnet.encoder.stages for layer in stage.layers]
    yield from residual_channels(model.regnet.embedder.embedder, layers, model.classifier[1])
    for layer in layers:
        expand, grouped, excite, project = layer.layer
        squeeze, widen = excite.attention[0], excite.attention[2]
        yield channels([squeeze], [widen])
        yield from around_groups(
            grouped.convolution,
            makers=conv_norm(expand),
            norm=grouped.normalization,
            readers=[project.convolution, squeeze],
            partners=[widen],
        )


def mobilenet_v2_channels(model: nn.Module) -> Iterator[Units]:
    """Streams, expanded channels (through their depthwise convolution), stem and head."""
    net = model.mobilenet_v2
    yield channels(
        conv_norm(net.conv_stem.first_conv) + conv_norm(net.conv_stem.conv_3x3), [net.conv_stem.reduce_1x1.convolution]
    )
    makers: list[nn.Module] = conv_norm(net.conv_stem.reduce_1x1)
    readers: list[nn.Module] = []
    for layer in net.layer:
        yield channels(conv_norm(layer.expand_1x1) + conv_norm(layer.conv_3x3), [layer.reduce_1x1.convolution])
        readers.append(layer.expand_1x1.convolution)
        if not layer.use_residual:
            yield channels(makers, readers)
            makers, readers = [], []
        makers = makers + conv_norm(layer.reduce_1x1)
    yield channels(makers, [*readers, net.conv_1x1.convolution])
    yield channels(conv_norm(net.conv_1x1), [model.classifier])


def vit() -> nn.Module:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=32, patch_size=8))


def swin() -> nn.Module:
    sizes = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0}
    return hf.SwinForImageClassification(hf.SwinConfig(**sizes, image_size=32, patch_size=4))


def mobilenet_v2() -> nn.Module:
    config = hf.MobileNetV2Config(depth_multiplier=0.25, image_size=32, finegrained_output=False)
    return hf.MobileNetV2ForImageClassification(config)


def convnext() -> nn.Module:
    return hf.ConvNextForImageClassification(hf.ConvNextConfig(hidden_sizes=[16, 32], depths=[2, 2], num_stages=2))


def resnet() -> nn.Module:
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2]}
    return hf.ResNetForImageClassification(hf.ResNetConfig(**sizes))


def regnet() -> nn.Module:
    sizes = {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [2, 2], "groups_width": 8}
    return hf.RegNetForImageClassification(hf.RegNetConfig(**sizes))


LISTED: list[Family] = [
    family("vit", vit, pixels, neurons=Task(_hf.mlps), heads=Task(lambda m: _hf.attention(m, DIM))),
    family("swin", swin, pixels, neurons=Task(_hf.mlps), heads=Task(swin_heads)),
    family("convnext", convnext, pixels, neurons=Task(lambda m: _hf.mlps(m, "pwconv1 pwconv2"))),
    family("resnet", resnet, pixels, channels=Task(resnet_channels)),
    family("mobilenet_v2", mobilenet_v2, pixels, channels=Task(mobilenet_v2_channels)),
    family("regnet", regnet, pixels, channels=Task(regnet_channels)),
]
