"""The text and speech families that the README's table lists: tiny random `transformers` models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from benchmarks.zoo import _hf
from benchmarks.zoo._family import Family, family, tokens
from benchmarks.zoo._zero import Axis, Task, Units, channels, cols, rows

DIM = 16  # width of a head, everywhere
SMALL = {
    "vocab_size": 99,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "use_cache": False,
}
GQA = {**SMALL, "hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": DIM}
LLAMA_TASKS = {
    "neurons": Task(_hf.gated_mlps),
    "heads": Task(lambda m: _hf.attention(m, DIM)),
    "query_heads": Task(lambda m: _hf.query_heads(m, DIM), reader=True),
}


def ids(generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_ids": tokens(generator)}


def masked_ids(generator: torch.Generator) -> dict[str, Tensor]:
    """Token numbers, the last two of the first text being padding."""
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[0, -2:] = 0
    return {"input_ids": tokens(generator), "attention_mask": mask}


def pair_ids(generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_ids": tokens(generator), "decoder_input_ids": tokens(generator, length=5)}


def speech(generator: torch.Generator) -> dict[str, Tensor]:
    features = torch.randn(2, 16, 20, generator=generator)
    return {"input_features": features, "decoder_input_ids": tokens(generator, length=5)}


def made(name: str, options: dict[str, Any], head: str = "ForCausalLM") -> nn.Module:
    """The model of that name from its configuration."""
    return getattr(hf, name + head)(getattr(hf, name + "Config")(**options))


def gpt2() -> nn.Module:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 96}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=99, use_cache=False, **sizes, **ends))


def mixtral(**how: str) -> nn.Module:
    config = hf.MixtralConfig(**GQA, num_local_experts=4, num_experts_per_tok=2, **how)
    return hf.MixtralForCausalLM(config)


def mixtral_batched() -> nn.Module:
    """A matrix a token instead of sorted tokens: the form that runs in float64, too."""
    return mixtral(experts_implementation="batched_mm")


def opt() -> nn.Module:
    sizes = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
    return hf.OPTModel(hf.OPTConfig(**sizes, ffn_dim=96, word_embed_proj_dim=64))


def t5() -> nn.Module:
    sizes = {"d_model": 64, "d_kv": DIM, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    return hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=99, use_cache=False, **sizes))


def t5_heads(model: nn.Module) -> Iterator[Units]:
    """One choice for each stack: its layers share the table of position biases, which has a column for each head."""
    for stack, name in (
        ("encoder", "0.SelfAttention"),
        ("decoder", "0.SelfAttention"),
        ("decoder", "1.EncDecAttention"),
    ):
        layers = [block.get_submodule(f"layer.{name}") for block in model.get_submodule(stack).block]
        value = [axis for layer in layers for axis in rows(layer.v, block=DIM)]
        gone = [axis for layer in layers for axis in rows(layer.q, layer.k, block=DIM) + cols(layer.o, block=DIM)]
        if name == "0.SelfAttention":
            gone.append(Axis(layers[0].relative_attention_bias.weight, 1))
        yield Units(4, [value], gone, each=len(layers))


def falcon() -> nn.Module:
    sizes = {k: v for k, v in SMALL.items() if k != "intermediate_size"}
    return hf.FalconModel(hf.FalconConfig(**sizes, ffn_hidden_size=96))


def falcon_heads(model: nn.Module) -> list[Units]:
    """Multi-query: one key and value for all, so a query head dies with its columns of the output projection."""
    found = _hf.find(model, "query_key_value dense")
    return [Units(4, [cols(dense, block=DIM)], rows(qkv, block=DIM)) for qkv, dense in found]


def whisper() -> nn.Module:
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "num_mel_bins": 16, "max_source_positions": 10}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1}
    config = hf.WhisperConfig(vocab_size=99, max_target_positions=16, use_cache=False, **sizes, **heads, **ends)
    return hf.WhisperModel(config)


LISTED: list[Family] = [
    family(
        "gpt2",
        gpt2,
        ids,
        neurons=Task(lambda m: _hf.mlps(m, "c_fc c_proj")),
        heads=Task(lambda m: _hf.fused_attention(m, DIM, 4, "c_attn c_proj")),
    ),
    family(
        "bert",
        lambda: hf.BertModel(hf.BertConfig(**SMALL)),
        masked_ids,
        neurons=Task(lambda m: _hf.mlps(m, "intermediate.dense output.dense")),
        heads=Task(lambda m: _hf.attention(m, DIM, "self.query self.key self.value output.dense")),
    ),
    family("llama", lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GQA)), ids, **LLAMA_TASKS),
    family(
        "llama_2_per_kv",
        lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(**{**SMALL, "num_key_value_heads": 2, "head_dim": DIM, "tie_word_embeddings": True})
        ),
        masked_ids,
        **LLAMA_TASKS,
    ),
    family("qwen2", lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GQA)), ids, **LLAMA_TASKS),
    family("mistral", lambda: hf.MistralForCausalLM(hf.MistralConfig(**GQA)), ids, **LLAMA_TASKS),
    family("mixtral", mixtral, ids, **{**LLAMA_TASKS, "neurons": Task(_hf.experts)}),
    family("mixtral_batched", mixtral_batched, ids, **{**LLAMA_TASKS, "neurons": Task(_hf.experts)}),
    family(
        "opt",
        opt,
        ids,
        neurons=Task(_hf.mlps),
        heads=Task(lambda m: _hf.attention(m, DIM, "q_proj k_proj v_proj out_proj")),
    ),
    family("t5", t5, pair_ids, neurons=Task(lambda m: _hf.mlps(m, "wi wo")), heads=Task(t5_heads)),
    family(
        "phi3",
        lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GQA)),
        ids,
        neurons=Task(_hf.fused_gated_mlps),
        heads=Task(lambda m: _hf.fused_attention(m, DIM, 2)),
        query_heads=Task(lambda m: _hf.fused_query_heads(m, DIM, 2), reader=True),
    ),
    family(
        "falcon",
        falcon,
        ids,
        neurons=Task(lambda m: _hf.mlps(m, "dense_h_to_4h dense_4h_to_h")),
        heads=Task(falcon_heads, note="multi-query: single query heads", reader=True),
    ),
    family(
        "whisper",
        whisper,
        speech,
        neurons=Task(_hf.mlps),
        heads=Task(lambda m: _hf.attention(m, DIM, "q_proj k_proj v_proj out_proj")),
        channels=Task(lambda m: [channels([m.encoder.conv1], [m.encoder.conv2])]),
    ),
]
