"""Text and speech encoders that nobody tuned for: they test whether the engine generalises."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.zoo import _hf
from benchmarks.zoo._family import Family, family, tokens
from benchmarks.zoo._zero import Task, Units, channels, cols, rows
from benchmarks.zoo.text import DIM, SMALL, ids, made, masked_ids, pair_ids

OUT_PROJ = "q_proj k_proj v_proj out_proj"
BERT_TASKS = {
    "neurons": Task(lambda m: _hf.mlps(m, "intermediate.dense output.dense")),
    "heads": Task(lambda m: _hf.attention(m, DIM, "self.query self.key self.value output.dense")),
}


def distilbert() -> nn.Module:
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "max_position_embeddings": 32}
    return made("DistilBert", {"vocab_size": 99, **sizes}, head="Model")


def deberta() -> nn.Module:
    position = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
    options = {**SMALL, **position, "max_relative_positions": 16, "norm_rel_ebd": "layer_norm", "share_att_key": False}
    return made("DebertaV2", options, head="Model")


def deberta_heads(model: nn.Module) -> Iterator[Units]:
    """Each head has projections of the relative positions, too."""
    names = "self.query_proj self.key_proj self.pos_query_proj self.pos_key_proj self.value_proj output.dense"
    for *others, value, dense in _hf.find(model, names):
        yield Units(4, [rows(value, block=DIM)], rows(*others, block=DIM) + cols(dense, block=DIM))


def bart() -> nn.Module:
    sizes = {f"{side}_{k}": n for side in ("encoder", "decoder") for k, n in (("layers", 2), ("attention_heads", 4))}
    sizes |= {"d_model": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 32}
    return made("Bart", {"vocab_size": 99, "use_cache": False, **sizes}, head="ForConditionalGeneration")


def t5_gated() -> nn.Module:
    sizes = {"d_model": 64, "d_kv": DIM, "d_ff": 96, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu"}
    return made("T5", {"vocab_size": 99, "use_cache": False, **sizes}, head="EncoderModel")


def wav2vec2() -> nn.Module:
    convs = {
        "conv_dim": (16, 16, 24),
        "conv_stride": (5, 2, 2),
        "conv_kernel": (10, 3, 3),
        "num_feat_extract_layers": 3,
    }
    position = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4}
    options = {k: v for k, v in SMALL.items() if k not in ("use_cache", "max_position_embeddings")}
    return made("Wav2Vec2", {**options, **convs, **position}, head="Model")


def wav2vec2_channels(model: nn.Module) -> list[Units]:
    """The last convolution is not listed: a layer norm reads it. The first one's norm has a group for each channel."""
    first, second, third = model.feature_extractor.conv_layers
    return [channels([first.conv, first.layer_norm], [second.conv]), channels([second.conv], [third.conv])]


def sound(generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 200, generator=generator)}


def long_ids(generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_ids": tokens(generator, length=9)}


UNLISTED: list[Family] = [
    family(
        "distilbert",
        distilbert,
        masked_ids,
        neurons=Task(lambda m: _hf.mlps(m, "lin1 lin2")),
        heads=Task(lambda m: _hf.attention(m, DIM, "q_lin k_lin v_lin out_lin")),
    ),
    family("roberta", lambda: made("Roberta", SMALL, head="Model"), masked_ids, **BERT_TASKS),
    family("xlm_roberta", lambda: made("XLMRoberta", SMALL, head="Model"), long_ids, **BERT_TASKS),
    family(
        "albert",
        lambda: made("Albert", {**SMALL, "embedding_size": 32}, head="Model"),
        ids,
        neurons=Task(lambda m: _hf.mlps(m, "ffn ffn_output"), note="one layer, called twice"),
        heads=Task(lambda m: _hf.attention(m, DIM, "query key value dense"), note="one layer, called twice"),
    ),
    family("electra", lambda: made("Electra", {**SMALL, "embedding_size": 32}, head="Model"), ids, **BERT_TASKS),
    family("deberta_v2", deberta, masked_ids, neurons=BERT_TASKS["neurons"], heads=Task(deberta_heads)),
    family("bart", bart, pair_ids, neurons=Task(_hf.mlps), heads=Task(lambda m: _hf.attention(m, DIM, OUT_PROJ))),
    family("t5_gated", t5_gated, masked_ids, neurons=Task(lambda m: _hf.gated_mlps(m, "wi_0 wi_1 wo"))),
    family(
        "wav2vec2",
        wav2vec2,
        sound,
        neurons=Task(lambda m: _hf.mlps(m, "intermediate_dense output_dense")),
        heads=Task(lambda m: _hf.attention(m, DIM, OUT_PROJ)),
        channels=Task(wav2vec2_channels),
    ),
]
