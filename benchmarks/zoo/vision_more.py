"""Vision and two-tower families that nobody tuned for: they test whether the engine generalises."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.zoo import _hf
from benchmarks.zoo._conv import chain
from benchmarks.zoo._family import Family, family, images, tokens
from benchmarks.zoo._zero import Axis, Task, Units, channels, cols, rows
from benchmarks.zoo.plain_sequence import mha_heads
from benchmarks.zoo.text import made
from benchmarks.zoo.text_more import OUT_PROJ
from benchmarks.zoo.vision import DIM, pixels

LAYERS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
VIT = {**LAYERS, "image_size": 32, "patch_size": 8}
TEXT = {
    **LAYERS,
    "vocab_size": 99,
    "max_position_embeddings": 7,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CLASSES = "ForImageClassification"


def words_and_pixels(generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_ids": tokens(generator), "pixel_values": images(generator)}


def beit_heads(model: nn.Module) -> Iterator[Units]:
    """Heads with their column in the layer's own table of position biases."""
    names = "attention.q_proj attention.k_proj attention.v_proj attention.o_proj relative_position_bias"
    for q, k, v, o, bias in _hf.find(model, names):
        gone = [*rows(q, k, block=DIM), *cols(o, block=DIM), Axis(bias.relative_position_bias_table, 1)]
        yield Units(4, [rows(v, block=DIM)], gone)


def segformer() -> nn.Module:
    sizes = {"num_encoder_blocks": 2, "depths": [1, 2], "sr_ratios": [2, 1], "hidden_sizes": [32, 64]}
    patches = {"patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2]}
    return made("Segformer", {**sizes, **patches}, head=CLASSES)


def segformer_neurons(model: nn.Module) -> list[Units]:
    """A depthwise convolution stands inside the MLP."""
    return [channels([up, conv], [down]) for up, conv, down in _hf.find(model, "fc1 dwconv.dwconv fc2")]


def efficientnet() -> nn.Module:
    sizes = {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320}
    return made("EfficientNet", sizes, head=CLASSES)


def efficientnet_channels(model: nn.Module) -> Iterator[Units]:
    """Streams, expanded channels with their depthwise convolution and scale, the squeezed ones between, head."""
    net = model.efficientnet
    makers: list[nn.Module] = [net.embeddings.convolution, net.embeddings.batchnorm]
    readers: list[nn.Module] = []
    scale: list[Axis] = []
    for block in net.encoder.blocks:
        deep, squeeze, project = block.depthwise_conv, block.squeeze_excite, block.projection
        depthwise, inner = [deep.depthwise_conv, deep.depthwise_norm], [project.project_conv, squeeze.reduce]
        if block.expand:
            readers.append(block.expansion.expand_conv)
            expanded = [block.expansion.expand_conv, block.expansion.expand_bn, *depthwise]
            yield channels(expanded, inner, rows(squeeze.expand))
        else:  # the stream itself goes through the depthwise convolution
            makers, readers, scale = makers + depthwise, readers + inner, rows(squeeze.expand)
        yield channels([squeeze.reduce], [squeeze.expand])
        if not project.apply_dropout:  # no residual sum: the stream ends here
            yield channels(makers, readers, scale)
            makers, readers, scale = [], [], []
        makers = [*makers, project.project_conv, project.project_bn]
    yield channels(makers, [*readers, net.encoder.top_conv], scale)
    yield channels([net.encoder.top_conv, net.encoder.top_bn], [model.classifier])


def convnextv2_neurons(model: nn.Module) -> Iterator[Units]:
    for up, norm, down in _hf.find(model, "pwconv1 grn pwconv2"):
        zero = [*rows(up), Axis(norm.weight, 3), Axis(norm.bias, 3)]
        yield Units(up.out_features, [zero], cols(down))


def levit() -> nn.Module:
    sizes = {"image_size": 64, "hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4]}
    return made("Levit", {**sizes, "depths": [1, 1, 1], "key_dim": [8, 8, 8]}, head=CLASSES)


def levit_neurons(model: nn.Module) -> Iterator[Units]:
    names = "linear_up.linear linear_up.batch_norm linear_down.linear"
    for up, norm, down in _hf.find(model, names):
        yield channels([up, norm], [down])


def levit_heads(model: nn.Module) -> Iterator[Units]:
    """Query, key and value of a head stand together, each with its part of a batch norm; values are wider."""
    for m in model.modules():
        if not hasattr(m, "attention_biases"):
            continue
        whole, value = m.projection.linear.in_features // m.num_attention_heads, m.attention_ratio * m.key_dim
        assert whole == value
        fused = getattr(m, "queries_keys_values", None) or m.keys_values
        size = fused.linear.out_features // m.num_attention_heads
        gone = [*rows(fused.linear, fused.batch_norm, block=size), *cols(m.projection.linear, block=value)]
        if hasattr(m, "queries"):
            gone += rows(m.queries.linear, m.queries.batch_norm, block=m.key_dim)
        zero = rows(fused.linear, fused.batch_norm, offset=size - value, block=value, stride=size)
        yield Units(m.num_attention_heads, [zero], [*gone, Axis(m.attention_biases, 0)])


def levit_channels(model: nn.Module) -> Iterator[Units]:
    patches = model.levit.patch_embeddings
    layers = [getattr(patches, f"embedding_layer_{i}") for i in range(1, 5)]
    yield from chain(*([layer.convolution, layer.batch_norm] for layer in layers))


def clip() -> nn.Module:
    return hf.CLIPModel(hf.CLIPConfig(text_config={**TEXT, "projection_dim": 32}, vision_config=VIT, projection_dim=32))


def siglip() -> nn.Module:
    return hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VIT))


TOWERS = {"neurons": Task(_hf.mlps), "heads": Task(lambda m: [*_hf.attention(m, DIM, OUT_PROJ), *mha_heads(m)])}
VIT_TASKS = {"neurons": Task(_hf.mlps), "heads": Task(lambda m: _hf.attention(m, DIM))}
UNLISTED: list[Family] = [
    family("deit", lambda: made("DeiT", VIT, head=CLASSES), pixels, **VIT_TASKS),
    family(
        "beit",
        lambda: made("Beit", {**VIT, "use_relative_position_bias": True}, head=CLASSES),
        pixels,
        neurons=Task(_hf.mlps),
        heads=Task(beit_heads),
    ),
    family("dinov2", lambda: made("Dinov2", {**VIT, "mlp_ratio": 2}, head=CLASSES), pixels, **VIT_TASKS),
    family(
        "segformer",
        segformer,
        pixels,
        neurons=Task(segformer_neurons),
        heads=Task(lambda m: _hf.attention(m, DIM)),
    ),
    family("efficientnet", efficientnet, pixels, channels=Task(efficientnet_channels)),
    family(
        "convnextv2",
        lambda: made("ConvNextV2", {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2}, head=CLASSES),
        pixels,
        neurons=Task(convnextv2_neurons, note="a norm divides by the mean over all neurons: none can go", exact=False),
    ),
    family(
        "levit",
        levit,
        lambda g: {"pixel_values": images(g, size=64)},
        neurons=Task(levit_neurons),
        heads=Task(levit_heads, note="position biases are cached between calls"),
        channels=Task(levit_channels, note="of the stem"),
    ),
    family("clip", clip, words_and_pixels, **TOWERS),
    family("siglip", siglip, words_and_pixels, **TOWERS),
]
