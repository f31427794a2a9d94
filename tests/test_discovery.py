"""Discovery: what the finders return can be gated, and once zero is removed by compact."""

import pytest
import torch
from torch import nn

import dgating as dg
from benchmarks.zoo import FAMILIES
from dgating.compaction._inputs import call_kwargs, split_inputs
from dgating.compaction._verify import difference, run

FINDERS = {
    "coupled": dg.coupled,
    "heads": dg.heads,
    "query": lambda m, x: dg.heads(m, x, which="query"),
    "value": lambda m, x: dg.heads(m, x, which="value"),
    "neurons": dg.neurons,
    "blocks": dg.blocks,
}
# what each finder must see: number of groups of every Groups
EXPECTED = {
    ("bert", "heads"): [4, 4],
    ("bert", "neurons"): [96, 96],
    ("bert", "value"): [4, 4],
    ("gpt2", "heads"): [4, 4],
    ("gpt2", "neurons"): [96, 96],
    ("llama", "heads"): [2, 2],
    ("llama", "query"): [8, 8],
    ("llama", "neurons"): [96, 96],
    ("llama", "value"): [2, 2],
    ("llama", "blocks"): [4],
    ("phi3", "heads"): [2, 2],
    ("phi3", "value"): [2, 2],
    ("falcon", "heads"): [4, 4],
    ("t5", "heads"): None,
    ("nanogpt", "heads"): [4, 4],
    ("nanogpt", "value"): [4, 4],
    ("vit_timm_style", "heads"): [4, 4],
    ("mixtral", "neurons"): None,
    ("encoder_norm_last", "heads"): [4, 4],
    ("vgg16_bn", "coupled"): None,
    ("resnet18", "coupled"): None,
    ("resnet18", "blocks"): None,
    ("densenet", "coupled"): None,
    ("mobilenet_v2", "coupled"): None,
    ("regnet", "coupled"): None,
    ("vit", "blocks"): [4],
}


def outputs(model, inputs):
    args, kwargs = split_inputs(inputs)
    return run(model, args, call_kwargs(model, kwargs))


QUICK = {
    ("llama", "heads"), ("llama", "query"), ("llama", "value"), ("llama", "blocks"), ("phi3", "value"),
    ("gpt2", "heads"), ("nanogpt", "value"), ("mixtral", "neurons"), ("encoder_norm_last", "heads"),
    ("bert", "neurons"),
    ("resnet18", "coupled"), ("densenet", "coupled"), ("regnet", "coupled"), ("resnet18", "blocks"), ("vit", "blocks"),
}  # fmt: skip
CASES = [pytest.param(*c, id="-".join(c), marks=() if c in QUICK else pytest.mark.slow) for c in EXPECTED]


def to_double(x):
    return x.double() if torch.is_tensor(x) and x.is_floating_point() else x


@pytest.mark.parametrize(("family", "finder"), CASES)
def test_gate_zero_compact(family, finder):
    model, inputs = FAMILIES[family].build(), FAMILIES[family].inputs()
    exact = family != "mixtral"  # its grouped product knows no float64
    if exact:
        model, inputs = model.double(), torch.utils._pytree.tree_map(to_double, inputs)
    before = outputs(model, inputs)
    groups = FINDERS[finder](model, inputs)
    if EXPECTED[family, finder] is not None:
        assert [len(g) for g in groups] == EXPECTED[family, finder]
    dg.gate_(model, groups, depth=3)
    assert difference(before, outputs(model, inputs)) == 0
    masks = {name: torch.arange(len(norms)) % 2 == 0 for name, norms in dg.group_norms(model).items()}
    if finder == "query":  # as many from every key-value group
        masks = {name: torch.arange(len(mask)) % 4 == 1 for name, mask in masks.items()}
    dg.zero_(model, masks)
    dg.collapse_(model)
    zeroed = outputs(model, inputs)
    small = dg.compact(model, inputs)
    assert difference(zeroed, outputs(small, inputs)) < (1e-10 if exact else 1e-5)
    removed = sum(u.removed for u in small.compaction.units)
    wanted = sum(int(m.sum()) for m in masks.values())
    assert removed >= wanted or family in ("mixtral", "regnet")  # there, as many have to leave every expert or block
    assert small.compaction.parameters[1] < small.compaction.parameters[0]


def test_experts_of_a_list_shrink_to_one_unit():
    model = FAMILIES["soft_moe"].build()
    inputs = FAMILIES["soft_moe"].inputs()
    groups = dg.experts(model, inputs)
    dg.gate_(model, groups)
    masks = {name: torch.arange(len(n)) == 1 for name, n in dg.group_norms(model).items()}
    dg.zero_(model, masks)
    dg.collapse_(model)
    small = dg.compact(model, inputs)
    assert difference(outputs(model, inputs), outputs(small, inputs)) < 1e-5
    widths = [m.out_features for m in small.modules() if isinstance(m, nn.Linear)]
    assert 1 in widths


def test_experts_of_a_stack_are_gated_and_keep_their_place():
    model = FAMILIES["mixtral"].build()
    inputs = FAMILIES["mixtral"].inputs()
    groups = dg.experts(model, inputs)
    assert [len(g) for g in groups] == [4, 4]
    dg.gate_(model, groups)
    masks = {name: torch.arange(len(n)) == 1 for name, n in dg.group_norms(model).items()}
    dg.zero_(model, masks)
    dg.collapse_(model)
    plan = dg.plan_compaction(model, inputs)
    reasons = {(name, axis): why for name, axis, why in plan.fixed}
    stack = next(n for n, axis in reasons if n.endswith("experts.down_proj") and axis == 0)
    assert "addresses its axis by index" in reasons[stack, 0]


@pytest.mark.parametrize(
    ("finder", "what"),
    [(dg.heads, "attention heads"), (dg.neurons, "hidden neurons"), (dg.experts, "experts"), (dg.blocks, "residual")],
)
def test_nothing_to_find_is_an_error(finder, what):
    with pytest.raises(ValueError, match=what):
        finder(nn.Linear(4, 2), (torch.randn(3, 4),))


def test_frozen_and_tied_weights_are_left_out():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    net[0].weight.requires_grad_(False)
    assert [len(g) for g in dg.neurons(net, (torch.randn(3, 4),))] == [6]


def test_wrong_kind_of_heads():
    with pytest.raises(ValueError, match="expected 'head', 'query' or 'value'"):
        dg.heads(nn.Linear(4, 2), (torch.randn(3, 4),), which="key")


def test_neurons_by_name_and_by_inputs_do_not_mix():
    with pytest.raises(ValueError, match="without example_inputs"):
        dg.neurons(nn.Linear(4, 2), (torch.randn(3, 4),), include="x")
