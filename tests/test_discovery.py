"""Discovery: what the finders return can be gated, and once zero is removed by compact."""

import pytest
import torch
from torch import nn

import dgating as dg
from benchmarks.zoo import FAMILIES
from dgating.compaction._verify import difference, run
from dgating.structure._inputs import call_kwargs, split_inputs

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


class Tied(nn.Module):
    """A table that embeds and projects, without a norm between: a column writes to the unit and reads it."""

    def __init__(self, registered_twice):
        super().__init__()
        self.table, self.hidden = nn.Embedding(20, 8), nn.Linear(8, 8)
        if registered_twice:
            self.out = nn.Linear(8, 20, bias=False)
            self.out.weight = self.table.weight

    def forward(self, ids):
        h = self.hidden(self.table(ids)).tanh()
        return self.out(h) if hasattr(self, "out") else nn.functional.linear(h, self.table.weight)


def test_a_table_that_embeds_and_projects_belongs_to_its_units():
    net, ids = Tied(registered_twice=False), torch.randint(0, 20, (3, 5))
    (groups,) = dg.coupled(net, (ids,))
    assert groups.sizes.tolist() == [20 + 8 + 1] * 8
    dg.gate_(net, groups)
    dg.zero_(net, {name: torch.arange(8) < 3 for name in dg.group_norms(net)})
    dg.collapse_(net)
    small = dg.compact(net, (ids,))
    assert small.table.weight.shape == (20, 5)
    assert difference(outputs(net, (ids,)), outputs(small, (ids,))) < 1e-5


def test_units_with_a_weight_that_is_registered_twice_are_left_out():
    assert dg.coupled(Tied(registered_twice=True), (torch.randint(0, 20, (3, 5)),)) == []


class Scaled(nn.Module):
    """A residual branch with a scale at its end, of linear layers or of convolutions."""

    def __init__(self, scale, layer=nn.Linear, after=None):
        super().__init__()
        sizes = [(4, 16), (16, 4)]
        self.up, self.down = (layer(*s) if layer is nn.Linear else layer(*s, 3, padding=1) for s in sizes)
        self.scale, self.after = nn.Parameter(scale), after or nn.Identity()

    def forward(self, x):
        return x + self.after(self.down(self.up(x).sin())) * self.scale.tanh()


class Turned(nn.Module):
    def forward(self, x):
        return x.unflatten(-1, (2, 2)).permute(0, 2, 1).transpose(1, 2).relu().flatten(-2)


SCALES = {
    "by channel": (Scaled(torch.zeros(4)), (3, 4)),
    "one number": (Scaled(torch.zeros(())), (3, 4)),
    "behind a dropout": (Scaled(torch.zeros(1), after=nn.Dropout()), (3, 4)),
    "behind views": (Scaled(torch.zeros(4), after=Turned()), (3, 4)),
    "of a convolution": (Scaled(torch.zeros(4, 1, 1), nn.Conv2d), (3, 4, 5, 5)),
}


@pytest.mark.parametrize(("net", "shape"), SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("target", ["module", "graph"])
def test_a_branch_behind_a_scale_of_zero_leaves(net, shape, target):
    net, x = net.double().eval(), torch.randn(shape, dtype=torch.float64)
    small = dg.compact(net, (x,), target=target)
    assert small.get_parameter("up.weight").shape[0] == 1  # of every axis one index stays
    assert torch.equal(net(x), small(x))


def test_units_that_only_hidden_outputs_read_leave():
    torch.manual_seed(0)
    net, x = Scaled(torch.tensor([0.0, 1.0, 0.0, 1.0])).double(), torch.randn(3, 4, dtype=torch.float64)
    with torch.no_grad():
        net.down.weight[1::2, :6] = 0
        net.up.weight[:3] = 0  # constants, which the bias may take up or not
    for fold, left in ((True, 10), (False, 13)):
        small = dg.compact(net, (x,), fold_constants=fold)
        assert small.up.weight.shape[0] == left
        assert difference(outputs(net, (x,)), outputs(small, (x,))) < 1e-12


def test_a_branch_that_is_read_beside_its_scale_stays():
    class Both(Scaled):
        def forward(self, x):
            y = self.down(self.up(x).sin())
            return x + y * self.scale, y.square()

    assert dg.plan_compaction(Both(torch.zeros(4)), (torch.randn(3, 4),)).removed == 0


def test_two_computed_factors_of_zero_do_not_hide_each_other():
    class Product(nn.Module):
        """Both sides are zero because a constant input meets a bias that cancels it."""

        def __init__(self):
            super().__init__()
            self.up, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(6, 4)
            with torch.no_grad():
                self.up.weight.zero_()
                self.up.bias.fill_(1.0)
                for layer in (self.a, self.b):
                    layer.bias.copy_(-layer.weight.double().sum(1))

        def forward(self, x):
            h = self.up(x)
            return x + self.a(h) * self.b(h)

    net, x = Product().double(), torch.randn(3, 4, dtype=torch.float64)
    small = dg.compact(net, (x,), fold_constants=False)
    assert difference(outputs(net, (x,)), outputs(small, (x,))) < 1e-12


def test_a_constant_that_is_added_up_over_the_inputs_is_no_constant():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.down(self.up(x).sigmoid().sum(1))

    net = Bag().double()
    with torch.no_grad():
        net.up.weight[:3] = 0
        net.down.weight[:, 5] = 0
    small = dg.compact(net, (torch.randn(2, 5, 4, dtype=torch.float64),))
    assert small.up.weight.shape[0] == 7  # the unit that nothing reads
    longer = torch.randn(2, 9, 4, dtype=torch.float64)
    assert difference(outputs(net, (longer,)), outputs(small, (longer,))) < 1e-12


def test_wrong_kind_of_heads():
    with pytest.raises(ValueError, match="expected 'head', 'query' or 'value'"):
        dg.heads(nn.Linear(4, 2), (torch.randn(3, 4),), which="key")


def test_neurons_by_name_and_by_inputs_do_not_mix():
    with pytest.raises(ValueError, match="without example_inputs"):
        dg.neurons(nn.Linear(4, 2), (torch.randn(3, 4),), include="x")
