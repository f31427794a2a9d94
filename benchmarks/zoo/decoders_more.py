"""Language models that nobody tuned for: they test whether the engine generalises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from benchmarks.zoo import _hf
from benchmarks.zoo._family import Family, family
from benchmarks.zoo._zero import Axis, Task, Units, cols, rows
from benchmarks.zoo.plain_sequence import mamba_channels
from benchmarks.zoo.text import DIM, GQA, LLAMA_TASKS, SMALL, ids, made

GROUPED = {k: v for k, v in GQA.items() if k != "head_dim"}  # for configurations that derive the width of a head
OUT_PROJ = "q_proj k_proj v_proj out_proj"
FALCON, NEOX_MLP = "query_key_value dense", "dense_h_to_4h dense_4h_to_h"
QK_NORM = "query and key norms span all heads: none can go"
ALIBI = "one choice for all layers: they share position biases that are computed per head"
MULTIPLIED = {
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 2.0,
    "embedding_multiplier": 3.0,
}


def gptj(name: str, heads: int) -> nn.Module:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": heads, "n_positions": 32, "rotary_dim": 4, "n_inner": 96}
    return made(name, {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False, **sizes})


def codegen_heads(model: nn.Module) -> Iterator[Units]:
    """Four blocks of rows, each with queries, values and keys of its own heads: the same number from every block."""
    dim, blocks = 4, 4
    for qkv, out in _hf.find(model, "qkv_proj out_proj"):
        heads = out.in_features // dim
        per, size = heads // blocks, 3 * out.in_features // blocks
        query, value, key = (rows(qkv, offset=i * size // 3, block=dim, runs=(per, size)) for i in range(3))
        yield Units(heads, [value], query + key + cols(out, block=dim), blocks)


def bloom() -> nn.Module:
    return made("Bloom", {"vocab_size": 99, "hidden_size": 64, "n_layer": 2, "n_head": 4, "use_cache": False})


def mpt() -> nn.Module:
    sizes = {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 32, "expansion_ratio": 2}
    return made("Mpt", {"vocab_size": 99, "use_cache": False, **sizes})


def qwen2_moe() -> nn.Module:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    return made("Qwen2Moe", {**GQA, **sizes, "shared_expert_intermediate_size": 64})


def gpt_oss() -> nn.Module:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return made("GptOss", {**GQA, **experts, "sliding_window": 4, "rope_parameters": rope})


def gpt_oss_neurons(model: nn.Module) -> Iterator[Units]:
    """Stacked experts with (inputs, outputs) weights and biases, gates and values in turn; only a zero gate kills."""
    for m in model.modules():
        if isinstance(bias := getattr(m, "gate_up_proj_bias", None), nn.Parameter):
            for e in range(m.num_experts):
                gate, value = (
                    [Axis(m.gate_up_proj, 2, i, stride=2, part=e), Axis(bias, 1, i, stride=2, part=e)] for i in range(2)
                )
                yield Units(m.intermediate_size, [gate], [*value, Axis(m.down_proj, 1, part=e)])


def sinks(model: nn.Module, units: list[Units]) -> list[Units]:
    """Adds the attention sink of each query head."""
    tables = [m.sinks for m in model.modules() if isinstance(getattr(m, "sinks", None), nn.Parameter)]
    return [
        replace(u, gone=[*u.gone, Axis(table, 0, block=table.numel() // u.count)])
        for u, table in zip(units, tables, strict=True)
    ]


def bigcode() -> nn.Module:
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 96, "multi_query": True}
    return made("GPTBigCode", {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False, **sizes})


def bigcode_heads(model: nn.Module) -> list[Units]:
    """As in Falcon, one key and value for all."""
    found = _hf.find(model, "c_attn c_proj")
    return [Units(4, [cols(out, block=DIM)], rows(qkv, block=DIM)) for qkv, out in found]


def mamba() -> nn.Module:
    sizes = {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "expand": 2, "time_step_rank": 2}
    return made("Mamba", {"vocab_size": 99, "use_cache": False, "eos_token_id": 2, "bos_token_id": 1, **sizes})


def falcon_grouped() -> nn.Module:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_kv_heads": 2, "ffn_hidden_size": 96}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "use_cache": False, "new_decoder_architecture": True}
    return made("Falcon", {"vocab_size": 99, "hidden_size": 128, **sizes, **ends})


def llama_like(name: str, model: str, options: dict[str, Any], **tasks: Task) -> Family:
    """A decoder with Llama's names for its layers."""
    return family(name, lambda: made(model, options), ids, **{**LLAMA_TASKS, **tasks})


UNLISTED: list[Family] = [
    family(
        "gpt_neox",
        lambda: made("GPTNeoX", SMALL),
        ids,
        neurons=Task(lambda m: _hf.mlps(m, NEOX_MLP)),
        heads=Task(lambda m: _hf.interleaved_attention(m, DIM, 4, FALCON)),
    ),
    family(
        "bloom",
        bloom,
        ids,
        neurons=Task(lambda m: _hf.mlps(m, NEOX_MLP)),
        heads=Task(lambda m: _hf.together(_hf.interleaved_attention(m, DIM, 4, FALCON)), note=ALIBI),
    ),
    family(
        "gptj",
        lambda: gptj("GPTJ", heads=4),
        ids,
        neurons=Task(lambda m: _hf.mlps(m, "fc_in fc_out")),
        heads=Task(lambda m: _hf.attention(m, DIM, OUT_PROJ)),
    ),
    family(
        "codegen",
        lambda: gptj("CodeGen", heads=16),
        ids,
        neurons=Task(lambda m: _hf.mlps(m, "fc_in fc_out")),
        heads=Task(codegen_heads, note="the same number from each of four blocks"),
    ),
    llama_like("gemma", "Gemma", GQA),
    llama_like("gemma2", "Gemma2", {**GQA, "query_pre_attn_scalar": 16, "sliding_window": 4}),
    llama_like("qwen3", "Qwen3", GQA),
    llama_like("olmo", "Olmo", GROUPED),
    llama_like(
        "olmo2",
        "Olmo2",
        GROUPED,
        heads=Task(lambda m: _hf.attention(m, DIM), note=QK_NORM, exact=False),
        query_heads=Task(lambda m: _hf.query_heads(m, DIM), note=QK_NORM, exact=False),
    ),
    llama_like("cohere", "Cohere", GROUPED),
    llama_like("stablelm", "StableLm", GROUPED),
    llama_like("granite", "Granite", {**GROUPED, **MULTIPLIED}),
    llama_like("starcoder2", "Starcoder2", GROUPED, neurons=Task(lambda m: _hf.mlps(m, "c_fc c_proj"))),
    family(
        "phi",
        lambda: made("Phi", SMALL),
        ids,
        neurons=Task(_hf.mlps),
        heads=Task(lambda m: _hf.attention(m, DIM, "q_proj k_proj v_proj dense")),
    ),
    family(
        "mpt",
        mpt,
        ids,
        neurons=Task(lambda m: _hf.mlps(m, "up_proj down_proj")),
        heads=Task(lambda m: _hf.together(_hf.fused_attention(m, DIM, 4, "Wqkv out_proj")), note=ALIBI),
    ),
    family(
        "qwen2_moe",
        qwen2_moe,
        ids,
        **{**LLAMA_TASKS, "neurons": Task(lambda m: [*_hf.experts(m), *_hf.gated_mlps(m)])},
    ),
    family(
        "falcon_grouped",
        falcon_grouped,
        ids,
        neurons=Task(lambda m: _hf.mlps(m, NEOX_MLP)),
        heads=Task(lambda m: _hf.interleaved_attention(m, DIM, 2, FALCON)),
        query_heads=Task(lambda m: _hf.interleaved_query_heads(m, DIM, 2, FALCON), reader=True),
    ),
    family(
        "gpt_oss",
        gpt_oss,
        ids,
        neurons=Task(gpt_oss_neurons),
        heads=Task(lambda m: sinks(m, _hf.attention(m, DIM))),
        query_heads=Task(lambda m: sinks(m, _hf.query_heads(m, DIM)), reader=True),
    ),
    family(
        "gpt_bigcode",
        bigcode,
        ids,
        neurons=Task(lambda m: _hf.mlps(m, "c_fc c_proj")),
        heads=Task(bigcode_heads, note="multi-query: single query heads", reader=True),
    ),
    family("mamba_hf", mamba, ids, channels=Task(mamba_channels)),
]
