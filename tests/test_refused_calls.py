"""Every mistake of the caller is an error that says what was wrong, and leaves model and optimizer as they were."""

import copy
import json
import warnings
from types import SimpleNamespace as Case

import pytest
import torch
from torch import nn

import dgating as dg

REFUSED = []


def refused(name, make, call, error, message):
    """One row: ``make()`` gives objects (``.net``, perhaps ``.opt``), ``call(objects)`` must raise ``error``."""
    REFUSED.append(pytest.param(make, call, error, message, id=name))


def plain():
    return Case(net=nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))


def gated(depth=3):
    c = plain()
    dg.gate_(c.net, [dg.features(c.net[0], name="inputs"), dg.features(c.net[2], name="hidden")], depth=depth)
    return c


def trained(optimizer=torch.optim.SGD, lam=0.1, **options):
    """A gated model whose optimizer has momentum."""
    c = gated()
    c.opt = optimizer(dg.param_groups(c.net, lam), **{"lr": 0.1, **options})
    c.net(torch.randn(5, 4)).square().mean().backward()
    c.opt.step()
    c.opt.zero_grad()
    return c


def momentum():
    return trained(momentum=0.9)


def foreign_optimizer():
    c = gated()
    c.opt = torch.optim.SGD(plain().net.parameters(), lr=0.1, momentum=0.9)
    return c


def lbfgs():
    c = gated()
    c.opt = torch.optim.LBFGS(c.net.parameters())
    return c


def lm_with_tied_head():
    c = Case(net=nn.ModuleDict({"embedding": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)}))
    c.net["head"].weight = c.net["embedding"].weight
    return c


def one(layer):
    return lambda: Case(net=nn.Sequential(layer()))


def with_parameter(make):
    """A model of one bare parameter."""

    def maker():
        c = Case(net=nn.Module())
        c.net.w = make()
        return c

    return maker


def frozen():
    c = plain()
    c.net[0].requires_grad_(False)
    return c


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return Case(net=torch.jit.script(nn.Linear(4, 2)))


def compiled():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's first import touches deprecated parts of torch
        return Case(net=torch.compile(nn.Linear(4, 2)))


def config(**changes):
    """JSON of a gated linear layer, with one entry of its only part or group changed."""
    net = nn.Linear(4, 2)
    data = json.loads(dg.GateConfig.from_model(dg.gate_(net, dg.features(net))).to_json())
    group = data["groups"][0]
    for key, value in changes.items():
        for place in (data, group, group["parts"][0], group["parts"][0]["members"][0]):
            if key in place:
                if value is None:
                    del place[key]
                else:
                    place[key] = value
                break
    return json.dumps(data)


def linear():
    return Case(net=nn.Linear(4, 2))


def mask(n, *dead):
    return torch.isin(torch.arange(n), torch.tensor(dead))


# what to gate
refused("gate no module", plain, lambda c: dg.gate_("net", dg.features(c.net[0])), TypeError, r"torch\.nn\.Module.*str")
refused("gate no groups", plain, lambda c: dg.gate_(c.net, []), ValueError, r"at least one Groups.*empty")
refused("gate a string", plain, lambda c: dg.gate_(c.net, ["0.weight"]), TypeError, r"expected Groups.*received str")
refused("gate None", plain, lambda c: dg.gate_(c.net, None), TypeError, r"groups: expected.*received NoneType")
refused(
    "name used twice",
    plain,
    lambda c: dg.gate_(c.net, [dg.features(c.net[0], name="a"), dg.features(c.net[2], name="a")]),
    ValueError,
    r"name 'a' is used twice",
)
refused(
    "name used twice in two calls",
    gated,
    lambda c: dg.gate_(c.net, dg.by_dim(c.net[0], 0, name="bias", group_name="inputs")),
    ValueError,
    r"name 'inputs' is used twice",
)
refused(
    "overlap in one call",
    plain,
    lambda c: dg.gate_(c.net, [dg.features(c.net[0]), dg.neurons(c.net[0])]),
    ValueError,
    r"'0\.weight' is in two groups",
)
refused(
    "overlap in a tie",
    plain,
    lambda c: dg.gate_(c.net, dg.tie(dg.neurons(c.net[0]), dg.neurons(c.net[0]))),
    ValueError,
    r"'0\.weight' is in two groups",
)
refused(
    "overlap in a concat",
    plain,
    lambda c: dg.gate_(c.net, dg.concat(dg.neurons(c.net[0]), dg.neurons(c.net[0]))),
    ValueError,
    r"'0\.weight' is in two groups",
)


def groups_from_before():
    c = plain()
    c.groups = dg.neurons(c.net[0])
    dg.gate_(c.net, dg.features(c.net[0]))
    return c


refused("gated twice", groups_from_before, lambda c: dg.gate_(c.net, c.groups), ValueError, r"0\.weight.*gated already")
refused(
    "finder on a gated layer",
    gated,
    lambda c: dg.features(c.net[0]),
    ValueError,
    r"(?s)weight.*(gated already|Near names)",
)
refused(
    "second groups of two are wrong",
    plain,
    lambda c: dg.gate_(c.net, [dg.features(c.net[0]), dg.features(nn.Linear(6, 2))]),
    ValueError,
    r"not part of this model",
)
refused(
    "groups of another model",
    plain,
    lambda c: dg.gate_(c.net, dg.features(plain().net[0])),
    ValueError,
    r"Linear\.weight is not part of this model",
)
refused(
    "groups of the original of a deepcopy",
    plain,
    lambda c: dg.gate_(copy.deepcopy(c.net), dg.features(c.net[0])),
    ValueError,
    r"not part of this model.*deepcopy",
)
refused(
    "bare parameter of another model",
    plain,
    lambda c: dg.gate_(c.net, dg.by_dim(plain().net[0].weight, 0)),
    ValueError,
    r"shape \(6, 4\) is not a parameter of this model",
)
refused(
    "weight swapped for another shape",
    plain,
    lambda c: _gate_after_swap(c.net),
    ValueError,
    r"shape \(6, 4\).*\(6, 3\) now",
)


def _gate_after_swap(net):
    layer, weight = net[0], net[0].weight
    groups = dg.features(layer)
    layer.weight = nn.Parameter(torch.zeros(6, 3))
    try:
        dg.gate_(net, groups)
    finally:
        layer.weight = weight


for bad, error in [
    (1, ValueError),
    (0, ValueError),
    (-3, ValueError),
    (True, TypeError),
    (3.0, TypeError),
    ("3", TypeError),
]:
    refused(
        f"depth {bad!r}",
        plain,
        lambda c, bad=bad: dg.gate_(c.net, dg.features(c.net[0]), depth=bad),
        error,
        rf"depth: expected.*2.*received {bad!r}",
    )

# parameters that cannot be gated
refused(
    "tied, by the head",
    lm_with_tied_head,
    lambda c: dg.gate_(c.net, dg.neurons(c.net["head"])),
    ValueError,
    r"head\.weight.*tied.*embedding\.weight",
)
refused(
    "tied, by the embedding",
    lm_with_tied_head,
    lambda c: dg.gate_(c.net, dg.features(c.net["embedding"])),
    ValueError,
    r"embedding\.weight.*tied.*head\.weight",
)
refused(
    "tied, by the parameter",
    lm_with_tied_head,
    lambda c: dg.gate_(c.net, dg.by_dim(c.net["head"].weight, 0)),
    ValueError,
    r"tied",
)
for kind, finder in {
    "features": lambda c: dg.features(c.net[0]),
    "neurons": lambda c: dg.neurons(c.net[0]),
    "by_dim": lambda c: dg.by_dim(c.net[0], 0),
    "whole": lambda c: dg.whole(c.net[0]),
}.items():
    refused(f"lazy, {kind}", one(lambda: nn.LazyLinear(3)), finder, ValueError, r"weight.*initialised.*received a lazy")
refused(
    "lazy, filters",
    one(lambda: nn.LazyConv2d(3, 2)),
    lambda c: dg.filters(c.net),
    ValueError,
    r"weight.*received a lazy",
)
refused(
    "lazy, inputs of a convolution",
    one(lambda: nn.LazyConv2d(3, 2)),
    lambda c: dg.features(c.net[0]),
    ValueError,
    r"weight.*received a lazy",
)
refused(
    "meta",
    one(lambda: nn.Linear(4, 2, device="meta")),
    lambda c: dg.gate_(c.net, dg.features(c.net[0])),
    ValueError,
    r"weight.*'meta'",
)
refused("frozen", frozen, lambda c: dg.gate_(c.net, dg.features(c.net[0])), ValueError, r"trainable.*received a frozen")
refused("frozen after the groups were made", plain, lambda c: _gate_frozen(c.net), ValueError, r"0\.weight.*frozen")
refused("nothing trainable", frozen, lambda c: dg.whole(c.net[0]), ValueError, r"trainable parameters, received none")
refused(
    "complex",
    one(lambda: nn.Linear(4, 2, dtype=torch.cfloat)),
    lambda c: dg.features(c.net[0]),
    TypeError,
    r"weight.*real floating.*complex64",
)
refused(
    "integers",
    with_parameter(lambda: nn.Parameter(torch.ones(3, 4, dtype=torch.int64), requires_grad=False)),
    lambda c: dg.by_dim(c.net, 0, name="w"),
    TypeError,
    r"w.*floating-point.*int64",
)
refused(
    "a buffer",
    one(lambda: nn.BatchNorm1d(3)),
    lambda c: dg.by_dim(c.net[0], 0, name="running_mean"),
    ValueError,
    r"no parameter 'running_mean'",
)
refused(
    "a plain tensor", plain, lambda c: dg.by_dim(torch.ones(3, 3), 0), TypeError, r"expected a module.*received Tensor"
)


def _gate_frozen(net):
    groups = dg.features(net[0])
    net[0].weight.requires_grad_(False)
    try:
        dg.gate_(net, groups)
    finally:
        net[0].weight.requires_grad_(True)


def weight_normed(groups_first):
    def maker():
        c = plain()
        c.groups = dg.features(c.net[0]) if groups_first else None
        torch.nn.utils.parametrizations.weight_norm(c.net[0])
        return c

    return maker


refused(
    "weight norm, then groups",
    weight_normed(False),
    lambda c: dg.features(c.net[0]),
    ValueError,
    r"weight.*(parametri|Near names)",
)
refused(
    "groups, then weight norm",
    weight_normed(True),
    lambda c: dg.gate_(c.net, c.groups),
    ValueError,
    r"0\.weight.*already has a parametrisation",
)


class Double(nn.Module):
    def forward(self, w):
        return 2 * w


def covered_gate():
    c = gated()
    nn.utils.parametrize.register_parametrization(c.net[0], "weight", Double())
    return c


refused(
    "collapse under another parametrisation",
    covered_gate,
    lambda c: dg.collapse_(c.net),
    ValueError,
    r"0\.weight.*another parametrisation",
)
refused("scripted", scripted, lambda c: dg.gate_(c.net, dg.by_dim(linear().net, 0)), TypeError, r"eager.*scripted")
refused(
    "compiled",
    compiled,
    lambda c: dg.gate_(c.net, dg.features(c.net._orig_mod)),
    ValueError,
    r"wrapped in OptimizedModule",
)
refused(
    "data parallel",
    lambda: Case(net=nn.DataParallel(nn.Linear(4, 2))),
    lambda c: dg.gate_(c.net, dg.features(c.net.module)),
    ValueError,
    r"wrapped in DataParallel",
)


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


# names, axes, labels
refused(
    "no such tensor",
    plain,
    lambda c: dg.by_dim(c.net[0], 0, name="wieght"),
    ValueError,
    r"no parameter 'wieght'.*Near names: \['weight'",
)
refused(
    "no such path",
    plain,
    lambda c: dg.by_dim(c.net, 0, name="7.weight"),
    ValueError,
    r"no parameter '7\.weight'.*'0\.weight'",
)
refused(
    "no such layer",
    plain,
    lambda c: dg.neurons(c.net, include="layer*"),
    ValueError,
    r"nothing in Sequential matches.*layer\*",
)
refused(
    "filters without convolutions", plain, lambda c: dg.filters(c.net), ValueError, r"nothing in Sequential matches"
)
refused(
    "all layers excluded",
    plain,
    lambda c: dg.layers(c.net, nn.Linear, exclude="*"),
    ValueError,
    r"after exclude=\['\*'\]",
)
refused("rule of another kind", plain, lambda c: dg.layers(c.net, 3), TypeError, r"glob or a predicate, received int")
refused(
    "neurons of an activation",
    plain,
    lambda c: dg.neurons(c.net, include="1"),
    TypeError,
    r"linear layers, received ReLU at '1'",
)
refused(
    "filters of a linear layer",
    plain,
    lambda c: dg.filters(c.net, include="0"),
    TypeError,
    r"convolutions, received Linear at '0'",
)
refused("features of a model", plain, lambda c: dg.features(c.net), TypeError, r"received Sequential.*by_dim")
refused(
    "neurons of a single layer model",
    one(lambda: nn.Linear(3, 3)),
    lambda c: dg.neurons(c.net),
    ValueError,
    r"hidden linear layer.*'0'",
)
refused("axis too large", plain, lambda c: dg.by_dim(c.net[0], 2), IndexError, r"shape \(6, 4\).*received 2")
refused("axis not an integer", plain, lambda c: dg.by_dim(c.net[0], 1.0), TypeError, r"dim: expected an integer.*1\.0")
refused(
    "block does not divide", plain, lambda c: dg.by_dim(c.net[0], 1, block=3), ValueError, r"divisor of 4.*received 3"
)
refused("block zero", plain, lambda c: dg.by_dim(c.net[0], 1, block=0), ValueError, r"block: expected.*received 0")
for name, labels, error, message in [
    ("of wrong length", torch.arange(3), ValueError, r"broadcasts to the weight's \(6, 4\), received \(3,\)"),
    ("of too many axes", torch.zeros(1, 6, 4).long(), ValueError, r"broadcasts to .*received \(1, 6, 4\)"),
    ("a column as a row", torch.arange(6), ValueError, r"labels\[:, None\]"),
    ("float", torch.zeros(4), TypeError, r"integers, received dtype torch\.float32"),
    ("boolean", torch.ones(4) > 0, TypeError, r"integers, received dtype torch\.bool"),
    ("skip a number", torch.tensor([0, 0, 2, 3]), ValueError, r"0 to 3 to occur, missing \[1\]"),
    ("all -1", torch.full((4,), -1), ValueError, r"at least one label >= 0"),
    ("below -1", torch.tensor([0, 1, -2, -1]), ValueError, r">= -1.*received -2"),
]:
    refused(f"labels {name}", plain, lambda c, x=labels: dg.by_labels(c.net[0], x), error, message)
refused(
    "tie of different counts",
    plain,
    lambda c: dg.tie(dg.features(c.net[0]), dg.neurons(c.net[0])),
    ValueError,
    r"same number of groups.*\[4, 6\]",
)
refused("tie of one", plain, lambda c: dg.tie(dg.features(c.net[0])), ValueError, r"two or more Groups, received 1")
refused(
    "tie of a module", plain, lambda c: dg.tie(c.net[0], c.net[2]), TypeError, r"tie: expected Groups, received Linear"
)
refused("concat of nothing", plain, lambda c: dg.concat(), ValueError, r"at least one Groups, received none")
refused(
    "concat of a list",
    plain,
    lambda c: dg.concat([dg.features(c.net[0])]),
    TypeError,
    r"expected Groups, received list",
)
refused("whole of a number", plain, lambda c: dg.whole(3), TypeError, r"expected.*Module.*received int")
refused(
    "layers of no module", plain, lambda c: dg.layers("net", nn.Linear), TypeError, r"torch\.nn\.Module, received str"
)
refused("whole of a string", plain, lambda c: dg.whole("net"), TypeError, r"expected torch\.nn\.Module, received str")

# numbers
for bad, error in [
    (-0.1, ValueError),
    (float("nan"), ValueError),
    (float("inf"), ValueError),
    ("0.1", TypeError),
    (True, TypeError),
]:
    for caller in (dg.param_groups, dg.penalty, dg.effective_penalty, dg.AbsorptionMonitor):
        got = type(bad).__name__ if error is TypeError else repr(bad)
        message = f"lam: expected a.*number.*received {got}"
        refused(f"lam {bad!r}, {caller.__name__}", gated, lambda c, f=caller, x=bad: f(c.net, x), error, message)
for caller in (dg.param_groups, dg.penalty, dg.effective_penalty, dg.AbsorptionMonitor):
    refused(
        f"lam of unknown groups, {caller.__name__}",
        gated,
        lambda c, f=caller: f(c.net, {"inputs": 1.0, "hidden": 1.0, "x": 1.0}),
        KeyError,
        r"unknown \['x'\]",
    )
    refused(
        f"lam without some groups, {caller.__name__}",
        gated,
        lambda c, f=caller: f(c.net, {"inputs": 1.0}),
        KeyError,
        r"missing \['hidden'\]",
    )
refused(
    "lam dict with nan",
    gated,
    lambda c: dg.param_groups(c.net, {"inputs": 1.0, "hidden": float("nan")}),
    ValueError,
    r"lam: .*received nan",
)
refused(
    "negative decay of the rest",
    gated,
    lambda c: dg.param_groups(c.net, 0.1, weight_decay=-1e-4),
    ValueError,
    r"weight_decay: .*>= 0, received -0\.0001",
)
for bad in (0.0, -1.0, float("nan"), float("inf")):
    refused(
        f"gate_lr {bad}",
        gated,
        lambda c, x=bad: dg.param_groups(c.net, 0.1, gate_lr=x),
        ValueError,
        rf"gate_lr: .*received {bad}",
    )
for name, bad in {
    "lam": -1.0,
    "lr": float("nan"),
    "steps": -1,
    "momentum": 1.0,
    "tol": 0.0,
    "schedule": "cosin",
}.items():
    refused(
        f"time_budget {name}",
        gated,
        lambda c, n=name, x=bad: dg.time_budget(**{"lam": 0.1, "lr": 0.1, "steps": 10, n: x}),
        ValueError,
        rf"{name}: expected.*received {bad!r}",
    )
refused(
    "time_budget lam a string",
    gated,
    lambda c: dg.time_budget("0.1", 0.1, 10),
    TypeError,
    r"lam: expected a.*number.*str",
)
refused(
    "time_budget schedule of wrong length",
    gated,
    lambda c: dg.time_budget(0.1, 0.1, 10, schedule=[1.0] * 9),
    ValueError,
    r"10 multipliers.*received 9",
)
for tau, q, message in [
    (-1.0, 1.0, "tau.*-1"),
    (float("nan"), 0.5, "tau.*nan"),
    (1.0, 0.0, "q: .*0.0"),
    (1.0, 1.5, "q: .*1.5"),
]:
    refused(
        f"prox_norm tau {tau} q {q}",
        gated,
        lambda c, a=tau, b=q: dg.prox_norm(torch.ones(2), a, b),
        ValueError,
        message,
    )
    refused(
        f"prox_threshold tau {tau} q {q}", gated, lambda c, a=tau, b=q: dg.prox_threshold(a, b), ValueError, message
    )
refused(
    "group_prox labels of another shape",
    gated,
    lambda c: dg.group_prox(torch.ones(3), torch.zeros(4).long(), 1.0, 1.0),
    ValueError,
    r"labels.*\(3,\).*\(4,\)",
)
refused(
    "group_prox labels of floats",
    gated,
    lambda c: dg.group_prox(torch.ones(3), torch.zeros(3), 1.0, 1.0),
    TypeError,
    r"labels.*integers.*float32",
)
for bad in (-1.0, float("nan")):
    refused(
        f"sparsity tol {bad}", gated, lambda c, x=bad: dg.sparsity(c.net, tol=x), ValueError, rf"tol: .*received {bad}"
    )
    refused(f"report tol {bad}", gated, lambda c, x=bad: dg.report(c.net, tol=x), ValueError, rf"tol: .*received {bad}")
XY = torch.ones(5, 2), torch.ones(5)
refused(
    "proximal_gradient shapes",
    gated,
    lambda c: dg.proximal_gradient(*XY, torch.zeros(3).long(), 0.1),
    ValueError,
    r"labels \(p,\), received \(5, 2\), \(5,\), \(3,\)",
)
refused(
    "proximal_gradient depth",
    gated,
    lambda c: dg.proximal_gradient(*XY, torch.zeros(2).long(), 0.1, 1),
    ValueError,
    r"depth: .*received 1",
)
refused(
    "proximal_gradient lam",
    gated,
    lambda c: dg.proximal_gradient(*XY, torch.zeros(2).long(), -1.0),
    ValueError,
    r"lam: .*received -1",
)
refused(
    "history without a record",
    gated,
    lambda c: dg.plots.history(dg.AbsorptionMonitor(c.net, 0.1)),
    ValueError,
    r"at least one record, received none",
)

# masks
refused(
    "mask of unknown groups",
    momentum,
    lambda c: dg.zero_(c.net, {"input": mask(4)}, c.opt),
    KeyError,
    r"no groups named 'input'.*'hidden', 'inputs'",
)
refused(
    "second mask of unknown groups",
    momentum,
    lambda c: dg.zero_(c.net, {"inputs": mask(4, 0), "x": mask(4)}, c.opt),
    KeyError,
    r"no groups named 'x'",
)
refused(
    "mask of wrong length",
    momentum,
    lambda c: dg.zero_(c.net, {"inputs": mask(6, 0)}, c.opt),
    ValueError,
    r"'inputs'.*\(4,\), received \(6,\)",
)
refused(
    "mask of two axes",
    momentum,
    lambda c: dg.zero_(c.net, {"inputs": mask(4)[None]}, c.opt),
    ValueError,
    r"\(4,\), received \(1, 4\)",
)
refused(
    "second mask of wrong length",
    momentum,
    lambda c: dg.zero_(c.net, {"inputs": mask(4, 0), "hidden": mask(4)}, c.opt),
    ValueError,
    r"'hidden'.*\(6,\), received \(4,\)",
)
refused(
    "mask of numbers",
    momentum,
    lambda c: dg.zero_(c.net, {"inputs": torch.ones(4)}, c.opt),
    TypeError,
    r"boolean.*received torch\.float32",
)
refused(
    "mask a list",
    momentum,
    lambda c: dg.zero_(c.net, {"inputs": [True] * 4}, c.opt),
    TypeError,
    r"boolean tensor.*received list",
)
refused("mask without a name", momentum, lambda c: dg.zero_(c.net, mask(4), c.opt), TypeError, r"dict.*received Tensor")

# optimizers
refused(
    "zero_ with a foreign optimizer",
    foreign_optimizer,
    lambda c: dg.zero_(c.net, {"inputs": mask(4, 1)}, c.opt),
    ValueError,
    r"optimizer: .*hold all .* missing",
)
refused(
    "collapse_ with a foreign optimizer",
    foreign_optimizer,
    lambda c: dg.collapse_(c.net, c.opt),
    ValueError,
    r"optimizer: .*hold all 4 factors.*4 are missing",
)
refused(
    "monitor with a foreign optimizer",
    foreign_optimizer,
    lambda c: dg.AbsorptionMonitor(c.net, 0.1, c.opt),
    ValueError,
    r"optimizer: .*hold all 4 factors",
)
refused("zero_ with LBFGS", lbfgs, lambda c: dg.zero_(c.net, {"inputs": mask(4, 1)}, c.opt), ValueError, r"LBFGS")
refused("collapse_ with LBFGS", lbfgs, lambda c: dg.collapse_(c.net, c.opt), ValueError, r"LBFGS")
refused(
    "collapse_ with a learning rate",
    gated,
    lambda c: dg.collapse_(c.net, 0.1),
    TypeError,
    r"torch\.optim\.Optimizer, received float",
)
refused(
    "zero_ with a string",
    gated,
    lambda c: dg.zero_(c.net, {"inputs": mask(4)}, "sgd"),
    TypeError,
    r"torch\.optim\.Optimizer, received str",
)
for caller in (dg.AbsorptionMonitor, lambda net, lam, opt: dg.check_optimizer(net, opt, lam)):
    name = getattr(caller, "__name__", "").replace("<lambda>", "check_optimizer")
    refused(
        f"AdamW, {name}",
        lambda: trained(torch.optim.AdamW),
        lambda c, f=caller: f(c.net, 0.1, c.opt),
        ValueError,
        r"AdamW decays weights apart",
    )
    refused(
        f"Adam with decoupled decay, {name}",
        lambda: trained(torch.optim.Adam, decoupled_weight_decay=True),
        lambda c, f=caller: f(c.net, 0.1, c.opt),
        ValueError,
        r"Adam decays weights apart",
    )
    refused(
        f"decay of another lam, {name}",
        lambda: trained(lam=0.3),
        lambda c, f=caller: f(c.net, 0.1, c.opt),
        ValueError,
        r"expected weight_decay 0\.0666667.*received 0\.2",
    )
    refused(
        f"no decay, {name}",
        lambda: trained(lam=0.0),
        lambda c, f=caller: f(c.net, 0.1, c.opt),
        ValueError,
        r"expected weight_decay 0\.0666667.*received 0\b",
    )
refused(
    "decay and penalty",
    momentum,
    lambda c: dg.AbsorptionMonitor(c.net, 0.1, c.opt, penalty_in_loss=True),
    ValueError,
    r"weight_decay 0 .*penalty is in the loss.*received 0\.0666667",
)

# the monitor
for name, bad, error in [
    ("window", 0, ValueError),
    ("window", 2.5, ValueError),
    ("safety", 0.5, ValueError),
    ("safety", float("nan"), ValueError),
    ("screen", 0.0, ValueError),
    ("screen", 1.0, ValueError),
]:
    refused(
        f"monitor {name} {bad}",
        momentum,
        lambda c, n=name, x=bad: dg.AbsorptionMonitor(c.net, 0.1, c.opt, **{n: x}),
        error,
        rf"{name}: expected.*received {bad}",
    )
refused(
    "recheck without depth 2",
    gated,
    lambda c: dg.AbsorptionMonitor(c.net, 0.1).recheck(lambda: None),
    ValueError,
    r"depth 2, found none",
)


def two_monitors():
    c = gated()
    other = linear().net
    c.state = dg.AbsorptionMonitor(dg.gate_(other, dg.features(other)), 0.1).state_dict()
    return c


refused(
    "monitor state of another model",
    two_monitors,
    lambda c: dg.AbsorptionMonitor(c.net, 0.1).load_state_dict(c.state),
    ValueError,
    r"expected bounds.current of shape \(10,\), received \(4,\): it is of another model",
)


def foreign_monitor():
    c, other = gated(), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    dg.gate_(other, [dg.features(other[0], name="inputs"), dg.features(other[2], name="hidden")])
    c.monitor = dg.AbsorptionMonitor(other, 0.1)
    return c


refused(
    "report with the monitor of another model",
    foreign_monitor,
    lambda c: dg.report(c.net, c.monitor),
    ValueError,
    r"monitor",
)
refused(
    "plot with the monitor of another model",
    foreign_monitor,
    lambda c: dg.plots.group_norms(c.net, c.monitor),
    ValueError,
    r"monitor",
)


def outlived():
    c = gated()
    c.monitor = dg.AbsorptionMonitor(c.net, 0.1)
    dg.collapse_(c.net)
    return c


refused("monitor of a collapsed model", outlived, lambda c: c.monitor.absorbed(), RuntimeError, r"not gated any more")

# a model without gates
UNGATED = {
    "group_norms": dg.group_norms,
    "imbalance": dg.imbalance,
    "misalignment": dg.misalignment,
    "sparsity": dg.sparsity,
    "report": dg.report,
    "group_norms of plots": dg.plots.group_norms,
    "penalty": dg.penalty,
    "effective_penalty": dg.effective_penalty,
    "param_groups": lambda net: dg.param_groups(net, 0.1),
    "collapse_": dg.collapse_,
    "zero_": lambda net: dg.zero_(net, {}),
    "check_optimizer": lambda net: dg.check_optimizer(net, torch.optim.SGD(net.parameters(), 0.1), 0.1),
    "AbsorptionMonitor": lambda net: dg.AbsorptionMonitor(net, 0.1),
    "GateConfig": dg.GateConfig.from_model,
}
for name, call in UNGATED.items():
    refused(
        f"{name} without gates",
        plain,
        lambda c, f=call: f(c.net),
        ValueError,
        r"gated model, received a Sequential without gates.*gate_",
    )
    if name != "check_optimizer":
        refused(
            f"{name} of no module", plain, lambda c, f=call: f({"a": 1}), TypeError, r"torch\.nn\.Module, received dict"
        )

# assignment to a gated weight


def assign(layer, value):
    layer.weight = value


def with_dead_group():
    c = gated()
    dg.zero_(c.net, {"inputs": mask(4, 2)})
    return c


refused(
    "assign to a dead group",
    with_dead_group,
    lambda c: assign(c.net[0], torch.ones(6, 4)),
    ValueError,
    r"0\.weight.*gates are zero.*non-zero",
)
refused("assign another shape", gated, lambda c: assign(c.net[0], torch.ones(6, 5)), ValueError, r"\(6, 4\).*\(6, 5\)")
refused(
    "assign another number of rows",
    gated,
    lambda c: assign(c.net[0], torch.ones(7, 4)),
    ValueError,
    r"\(6, 4\).*\(7, 4\)",
)
refused("assign another dtype", gated, lambda c: assign(c.net[0], torch.ones(6, 4).double()), ValueError, r"float64")

# configurations
for name, text, message in [
    ("no JSON", "{", r"expected JSON"),
    ("empty", "", r"expected JSON"),
    ("a list", "[]", r"expected format.*received 'list'"),
    ("foreign", '{"model_type": "bert"}', r"expected format 'dgating/gates/1', received None"),
    ("of a later version", '{"format": "dgating/gates/9"}', r"received 'dgating/gates/9'"),
    ("without groups", '{"format": "dgating/gates/1"}', r"damaged.*groups"),
    ("groups a number", config(groups=3), r"damaged"),
    ("depth a string", config(depth="3"), r"damaged"),
    ("depth 1", config(depth=1), r"depth"),
    ("name a number", config(name=3), r"damaged"),
    ("without labels", config(labelled=None), r"damaged.*labelled"),
    ("unknown kind", config(kind="spiral"), r"damaged.*spiral"),
    ("no parts", config(parts=[]), r"damaged|at least one part"),
    ("no members", config(members=[]), r"damaged"),
    ("no label", config(label=None), r"damaged.*label"),
    ("zero groups", config(n_groups=0), r"damaged"),
    ("labels outside the shape", config(labelled=[1, 9]), r"damaged|broadcast"),
    (
        "groups without weights",
        config(n_groups=2, kind="runs", values=[0], lengths=[4]),
        r"damaged|expected every group",
    ),
]:
    refused(f"config {name}", linear, lambda c, t=text: dg.GateConfig.from_json(t).apply_(c.net), ValueError, message)


def config_of(c):
    return dg.GateConfig.from_model(c.net)


refused(
    "config of another architecture",
    linear,
    lambda c: config_of(gated()).apply_(c.net),
    ValueError,
    r"Linear has no module '0'",
)
refused(
    "config of another width",
    lambda: Case(net=nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))),
    lambda c: config_of(gated()).apply_(c.net),
    ValueError,
    r"shape \(6, 4\).*'0\.weight' is \(6, 5\)",
)
refused(
    "config of a wider second layer",
    lambda: Case(net=nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 9))),
    lambda c: config_of(gated()).apply_(c.net),
    ValueError,
    r"'2\.weight' is \(9, 6\)",
)
refused("config on a gated model", gated, lambda c: config_of(c).apply_(c.net), ValueError, r"gated already")


def second_depth_wrong():
    c = plain()
    data = json.loads(config_of(gated()).to_json())
    data["groups"][1]["depth"] = 1
    c.text = json.dumps(data)
    return c


refused(
    "config with one wrong depth",
    second_depth_wrong,
    lambda c: dg.GateConfig.from_json(c.text).apply_(c.net),
    ValueError,
    r"depth",
)


def _state(value):
    if not isinstance(value, torch.Tensor):
        return value
    if nn.parameter.is_lazy(value) or value.is_meta:
        return type(value)
    return value.dtype, tuple(value.shape), value.detach().cpu().contiguous().view(-1).view(torch.uint8).tolist()


def fingerprint(c):
    """Everything a refused call must not change: bits, classes, identities and order of parameters, optimizer."""
    net = c.net
    out = {
        "state": {k: _state(v) for k, v in net.state_dict().items()},
        "modules": [(path, id(m), type(m)) for path, m in net.named_modules()],
        "parameters": [(n, id(p), p.requires_grad) for n, p in net.named_parameters(remove_duplicate=False)],
    }
    if opt := getattr(c, "opt", None):
        out["groups"] = [{**g, "params": [id(p) for p in g["params"]]} for g in opt.param_groups]
        out["optimizer"] = {
            id(p): {k: _state(v) for k, v in state.items()} for p, state in opt.state.items() if isinstance(state, dict)
        }
    return out


@pytest.mark.parametrize(("make", "call", "error", "message"), REFUSED)
def test_refused_and_nothing_changed(make, call, error, message):
    case = make()
    before = fingerprint(case)
    with pytest.raises(error, match=message) as caught:
        call(case)
    assert caught.type is error  # not merely a subclass of it
    assert fingerprint(case) == before


def test_distributed_wrapper_is_refused(process_group):
    bare = nn.Linear(4, 2)
    case = Case(net=nn.parallel.DistributedDataParallel(bare))
    before = fingerprint(case)
    with pytest.raises(ValueError, match="wrapped in DistributedDataParallel"):
        dg.gate_(case.net, dg.features(bare))
    assert fingerprint(case) == before


@pytest.mark.parametrize("apart", [True, False], ids=["gated one by one", "copied"])
def test_two_layers_under_one_name_are_not_mixed_up(apart):
    """Gates that were made apart are different gates: counted one by one, or refused by name."""
    first = nn.Linear(4, 4)
    dg.gate_(first, dg.features(first))
    second = copy.deepcopy(first)
    if apart:
        second = nn.Linear(4, 4)
        dg.gate_(second, dg.features(second))
    model = nn.Sequential(first, second)
    try:
        total = dg.penalty(model)
    except ValueError as error:
        assert "'weight'" in str(error)  # noqa: PT017 - an honest refusal is right, too
    else:
        torch.testing.assert_close(total, dg.penalty(first) + dg.penalty(second))
        assert sum(map(len, dg.group_norms(model).values())) == 8


def test_the_table_is_long_enough():
    assert len(REFUSED) >= 35
    assert len({row.id for row in REFUSED}) == len(REFUSED)
