"""Paths: warm starts, progressive compaction and the way back to the full size."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dgating as dg
from dgating.gating import units
from dgating.maths._lam import lam_grid
from dgating.paths._data import as_data, split
from dgating.paths._grid import lam_max
from dgating.paths._path import path
from dgating.paths._result import RegularizationPath, equal
from dgating.paths._shrink import Shrinking, balance_
from dgating.paths._walk import Options
from dgating.structure._capture import CompactionError


def table(n: int = 300, p: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Three of the columns matter."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=g)
    return x, x[:, 0] - 2 * x[:, 3] + 1.5 * x[:, 7] + 0.1 * torch.randn(n, generator=g)


def classes(n: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = table(n)
    return x, (y > 0).long()


def mlp(p: int = 12, out: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(p, 16), nn.ReLU(), nn.Linear(16, out))


LAMS = [0.01 * 1.6**i for i in range(12)]


# --- data ---


def test_the_same_data_in_every_form():
    x, y = classes(20)
    forms = [
        (x, y),
        [x.numpy(), y.numpy()],
        TensorDataset(x, y),
        DataLoader(TensorDataset(x, y), batch_size=6),
        as_data((x, y)),
    ]
    for form in forms:
        made = as_data(form)
        assert torch.equal(made.inputs[0], x)
        assert torch.equal(made.target, y)
    assert as_data((x.double().numpy(), y.numpy())).inputs[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (3, TypeError, r"expected \(X, y\).*received int"),
        ((torch.ones(3, 2),), TypeError, "received tuple"),
        ((torch.ones(3, 2), torch.ones(4)), ValueError, "expected 4 rows everywhere"),
        ((torch.ones(0, 2), torch.ones(0)), ValueError, "expected rows"),
        ((torch.tensor([[float("nan")]]), torch.ones(1)), ValueError, "finite numbers"),
        ((np.array([["a"]]), torch.ones(1)), TypeError, "expected numbers, received"),
    ],
)
def test_data_that_are_none(data, error, message):
    with pytest.raises(error, match=message):
        as_data(data)


def test_a_split_is_even_over_the_classes():
    y = torch.tensor([0] * 90 + [1] * 10)
    train, held = split(as_data((torch.arange(100.0)[:, None], y)), 0.2, torch.Generator().manual_seed(0))
    assert len(train) == 80
    assert held.target.bincount().tolist() == [18, 2]
    numbers = [set(part.rows().inputs[0].flatten().tolist()) for part in (train, held)]
    assert not numbers[0] & numbers[1]
    assert numbers[0] | numbers[1] == set(range(100))


# --- grids ---


def test_grids():
    grid = lam_grid(2.0, 0.01, 5)
    assert grid[-1] == 2.0
    assert np.allclose(np.diff(np.log(grid)), np.log(100) / 4)
    for bad in ({"lam_max": 0}, {"lam_max": -1}, {"lam_max": 1, "ratio": 0}, {"lam_max": 1, "n": 0}):
        with pytest.raises(ValueError, match="expected"):
            lam_grid(**bad)


def test_lam_max_of_the_group_lasso_is_that_of_the_closed_form():
    x, y = table()
    net = nn.Linear(12, 1)
    dg.gate_(net, dg.by_dim(net, 1, block=3), depth=2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    exact = ((x - x.mean(0)).T @ (y - y.mean()) / len(x)).view(4, 3).norm(dim=1).max()
    assert lam_max(net, (x, y)) == pytest.approx(float(exact), rel=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("depth", [3, 4])
def test_lam_max_beyond_two_is_the_last_stationary_point_of_one_group(depth):
    """One feature: the objective ``-g r + h r^2 / 2 + lam r^(2/D)`` is stationary somewhere up to that strength."""
    x = torch.tensor([[1.0], [-1.0]]) * 2
    y = torch.tensor([3.0, -3.0])
    net = nn.Linear(1, 1, bias=False)
    dg.gate_(net, dg.features(net), depth=depth)
    found = lam_max(net, (x, y))
    g, h = 6.0, 4.0
    r = torch.linspace(1e-4, g / h, 100_001, dtype=torch.float64)
    brute = float((depth / 2 * r ** (1 - 2 / depth) * (g - h * r)).max())
    assert found == pytest.approx(brute, rel=1e-4)


# --- paths ---


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_a_path_finds_the_columns_that_matter(depth):
    found = path(lambda: nn.Linear(12, 1), table(), LAMS, depth=depth, steps=100, batch_size=64)
    chosen = [p for p in found if p.n_groups == 3]
    assert chosen
    assert chosen[0].kept["weight"].nonzero()[:, 0].tolist() == [0, 3, 7]
    kept = [p.n_groups for p in found]
    assert kept == sorted(kept, reverse=True)
    for p in found:
        assert torch.equal(p.kept["weight"], p.norms["weight"] > 0)
        assert torch.allclose(p.state["weight"].norm(dim=0), p.norms["weight"], atol=1e-6)


def test_states_are_full_size_and_score_what_the_path_says():
    x, y = classes()
    seen = []
    found = path(mlp, (x, y), LAMS, validation=(x, y), steps=25, batch_size=64, callback=seen.append)
    assert seen == list(found)
    assert found[-1].parameters < found[0].parameters
    for p in found:
        net = found.restore(p)
        assert isinstance(net[0], nn.Linear)
        assert net[0].in_features == 12
        assert float((net(x).argmax(1) == y).float().mean()) == pytest.approx(p.score, abs=1e-6)


def test_a_path_is_the_same_again_and_restores_nothing_of_the_caller():
    net = mlp()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    draw = torch.rand(1)
    torch.manual_seed(5)
    a = path(net, classes(), LAMS[:6], steps=30)
    assert torch.rand(1) == draw
    b = path(net, classes(), LAMS[:6], steps=30)
    assert equal(a, b)
    assert not equal(a, path(net, classes(), LAMS[:6], steps=30, seed=1))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert not dg.is_gated(net)


def test_cutting_out_changes_only_the_size():
    """Without compaction the same groups die; numbers differ by rounding and by momentum, which starts anew."""
    found = [path(mlp, classes(), LAMS, steps=25, batch_size=64, compact=c) for c in (True, False)]
    assert [p.parameters for p in found[1]] == [found[1][0].parameters] * len(found[1])
    a, b = ([p.n_groups for p in f] for f in found)
    assert np.abs(np.subtract(a, b)).max() <= 2


@pytest.mark.parametrize("kind", ["neurons", "columns and neurons", "filters"])
def test_hidden_groups_are_cut_out_by_the_structure_engine(kind):
    x, y = classes()
    if kind == "filters":
        x = x.reshape(-1, 1, 12).repeat(1, 2, 1)
        net = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 2))
        groups = lambda m: dg.coupled(m, (x[:4],))  # noqa: E731
    elif kind == "neurons":
        net = mlp()
        groups = lambda m: dg.neurons(m, (x[:4],))  # noqa: E731
    else:
        net = mlp()
        groups = lambda m: [dg.features(m[0], name="inputs"), dg.features(m[2], name="hidden")]  # noqa: E731
    found = path(net, (x, y), LAMS, groups=groups, steps=40, batch_size=64, validation=(x, y), min_groups=3)
    assert found[-1].n_groups < found[0].n_groups
    assert found[-1].parameters < sum(p.numel() for p in net.parameters())
    for p in found:
        restored = found.restore(p)
        assert float((restored(x).argmax(1) == y).float().mean()) == pytest.approx(p.score, abs=1e-6)
        for name, norms in p.norms.items():
            assert torch.equal(norms > 0, p.kept[name])


def test_a_gated_model_goes_on_from_its_factors():
    net = mlp()
    dg.gate_(net, dg.features(net[0], name="inputs"), depth=4)
    found = path(net, classes(), LAMS[-3:], steps=4)
    assert found.depth == 4
    assert set(found[0].kept) == {"inputs"}
    assert found.restore(0, mlp())[0].in_features == 12


def test_a_diverging_path_keeps_what_was_good():
    x, y = table()
    with pytest.raises(FloatingPointError, match="Lower lr"):
        path(lambda: nn.Linear(12, 1), (x, y * 1e3), LAMS, lr=1e3)
    with pytest.warns(RuntimeWarning, match="ends before it"):
        found = path(lambda: nn.Linear(12, 1), (x, y), [0.01, 1e9], lr=0.05, steps=6)
    assert len(found) == 1
    assert all(math.isfinite(float(t.sum())) for t in found[0].state.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lams": [1, 0.5]}, "rising strengths"),
        ({"lams": []}, "rising strengths"),
        ({"lams": [-1.0]}, "lams"),
        ({"steps": 0}, "steps: expected"),
        ({"dense_steps": -1}, "dense_steps: expected"),
        ({"batch_size": 0}, "batch_size: expected"),
        ({"lr": float("nan")}, "lr"),
        ({"validation": 1.5}, "validation: expected a share"),
    ],
)
def test_refused_paths(options, message):
    with pytest.raises(ValueError, match=message):
        path(mlp, classes(), **{"lams": LAMS, **options})


@pytest.mark.parametrize(("rows", "batch"), [(10, 32), (2048, 64), (8192, 256), (50_000, 256), (1_000_000, 3907)])
def test_batches_grow_with_the_table(rows, batch):
    assert Options().rows_a_step(rows) == batch
    assert Options(batch_size=7).rows_a_step(rows) == 7


def test_too_few_steps_for_zeros_are_said_so():
    with pytest.warns(RuntimeWarning, match=r"Take steps >= 70 \(now 3\)"):
        path(mlp, classes(), [0.1], steps=3)


def test_strengths_rise_by_themselves_until_nothing_is_left():
    x, y = table()
    for scale in (0.1, 1.0, 2.0):  # the unit of the target moves the strengths, not the path
        found = path(lambda: nn.Linear(12, 1), (x, y * scale), dense_steps=100, steps=25, batch_size=64)
        assert found[0].n_groups > 3
        assert found[-1].n_groups == 0
        assert any(p.kept["weight"].nonzero()[:, 0].tolist() == [0, 3, 7] for p in found)


def test_a_relaxed_fit_is_better_and_keeps_the_zeros():
    x, y = table()
    plain, relaxed = (
        path(lambda: nn.Linear(12, 1), (x, y), LAMS, validation=(x, y), batch_size=64, relax_steps=n) for n in (0, 60)
    )
    assert [p.n_groups for p in plain] == [p.n_groups for p in relaxed]
    for p, q in zip(plain, relaxed, strict=True):
        assert p.norms["weight"].equal(q.norms["weight"])
        assert torch.equal(q.state["weight"].norm(dim=0) > 0, q.kept["weight"])
        if p.n_groups:
            assert q.score >= p.score - 1e-3
    one = next(q for q in relaxed if q.n_groups == 3)
    kept = one.kept["weight"].nonzero()[:, 0]
    exact = torch.linalg.lstsq(torch.cat([x[:, kept], torch.ones(len(x), 1)], 1), y[:, None]).solution[:-1, 0]
    assert torch.allclose(one.state["weight"][0, kept], exact, atol=0.02)


def test_zeros_that_stay_in_the_model_do_not_move():
    """Without compaction a relaxed fit, momentum and the next strength leave what is zero alone."""
    found = path(mlp, classes(), LAMS, steps=25, batch_size=64, compact=False, relax_steps=10)
    gone = torch.zeros(12, dtype=torch.bool)
    for p in found:
        assert bool((p.state["0.weight"][:, gone] == 0).all())
        gone |= ~p.kept["0.weight"]
    assert bool(gone.any())


def test_patience_ends_a_strength_early():
    found = path(mlp, classes(), [0.05, 0.4], steps=400, batch_size=64, patience=1)
    assert min(p.steps for p in found) < 400


def test_dropout_draws_from_the_seed():
    net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
    a, b = (path(net, classes(), LAMS, steps=5, batch_size=64) for _ in range(2))
    assert equal(a, b)


def test_flops_are_those_of_the_small_model():
    found = path(mlp, classes(), LAMS, steps=25, batch_size=64)
    for p in found:
        assert p.flops == 2 * (p.n_groups * 16 + 16 * 2) or p.n_groups == 0
    assert found.select(max_flops=found[-1].flops).flops == found[-1].flops


def test_refused_models():
    with pytest.raises(TypeError, match="model_fn: expected"):
        path(lambda: 3, classes(), LAMS)
    with pytest.raises(ValueError, match="no linear layer"):
        path(nn.Conv1d(1, 2, 3), classes(), LAMS)


# --- shrinking ---


def test_balancing_keeps_the_weights():
    net = mlp()
    dg.gate_(net, dg.features(net[0]), depth=3)
    with torch.no_grad():
        net[0].parametrizations.weight[0].gamma.mul_(-0.3)
        net[0].parametrizations.weight.original[:, 2] = 0
    weight = net[0].weight.detach().clone()
    for unit in units(net):
        balance_(unit)
        sizes = unit.factor_norms()
        assert torch.allclose(sizes, sizes[:1].expand_as(sizes), atol=1e-6)
    assert torch.allclose(net[0].weight, weight, atol=1e-6)


def test_what_reads_the_data_twice_keeps_all_columns():
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.skip = nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x):
            return self.body(x).relu() + self.skip(x)

    net = Skip()
    dg.gate_(net, dg.features(net.body, name="inputs"), depth=3)
    x, y = classes()
    small = Shrinking(net, as_data((x, y)))
    before = small.full_state()
    dead = {"inputs": torch.arange(12) < 5}
    small.drop(dead)
    assert len(small.columns) == 12
    after = small.full_state()
    assert torch.equal(after["skip.weight"], before["skip.weight"])
    assert bool((after["body.weight"][:, :5] == 0).all())
    assert torch.allclose(after["body.weight"][:, 5:], before["body.weight"][:, 5:], atol=1e-6)
    assert small.norms()["inputs"].gt(0).tolist() == (~dead["inputs"]).tolist()


def test_columns_leave_one_by_one():
    net = mlp()
    dg.gate_(net, dg.features(net[0], name="inputs"), depth=3)
    x, y = classes()
    small = Shrinking(net, as_data((x, y)))
    before = small.full_state()
    for last in (2, 5, 11):
        assert small.drop({"inputs": torch.arange(12) < last})
        assert not small.drop({"inputs": torch.arange(12) < last})
        assert small.columns.tolist() == list(range(last, 12))
        assert small.model[0].in_features == small.data.width == 12 - last
        assert torch.equal(small.data.rows(slice(5)).inputs[0], x[:5, last:])
        after = small.full_state()["0.weight"]
        assert torch.allclose(after[:, last:], before["0.weight"][:, last:], atol=1e-5)
        assert bool((after[:, :last] == 0).all())


def test_models_that_cannot_be_exported_keep_their_zeros():
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(x) * (1.0 if x.sum() > 1e9 else 2.0)

    with pytest.raises(CompactionError):
        dg.compact(Odd(), (torch.randn(3, 12),))
    x, y = classes()
    groups = lambda m: dg.features(m.body[2], name="hidden")  # noqa: E731
    found = path(Odd(), (x, y), LAMS, groups=groups, steps=25, batch_size=64)
    assert found[-1].n_groups < 16


# --- results ---


def test_choosing_by_hand():
    x, y = classes()
    found = path(mlp, (x, y), LAMS, validation=(x, y), steps=6)
    scores = [p.score for p in found]
    best = max(scores)
    assert found.select().score == best
    error = math.sqrt(best * (1 - best) / len(x))
    sparse = found.select("1se")
    assert sparse.score >= best - error
    assert sparse.n_groups == min(p.n_groups for p in found if p.score >= best - error)
    assert found.select("within", within=1.0).n_groups == found[-1].n_groups
    assert found.select(n_groups=5).n_groups <= 5
    assert found.select(max_params=found[-1].parameters).parameters == found[-1].parameters
    assert found.select("1se", standard_error=0.0).score == best
    with pytest.raises(ValueError, match="no point of this path"):
        found.select(n_groups=-1)
    with pytest.raises(ValueError, match="rule: expected"):
        found.select("other")
    blind = path(mlp, (x, y), LAMS[-2:], validation=None)
    assert math.isnan(blind[0].score)
    with pytest.raises(ValueError, match="no validation rows"):
        blind.select("1se")


def test_the_standard_error_is_that_of_the_rows():
    x, y = table()
    found = path(lambda: nn.Linear(12, 1), (x, y), LAMS, validation=(x, y), batch_size=64)
    for p in list(found)[:5]:
        with torch.no_grad():
            errors = (found.restore(p)(x)[:, 0] - y).double().square()
        variance = float((y - y.mean()).double().square().mean())
        assert p.score == pytest.approx(1 - float(errors.mean()) / variance, abs=1e-6)
        assert p.standard_error == pytest.approx(float(errors.std(unbiased=False)) / 300**0.5 / variance, abs=1e-6)
    best = found.select()
    limit = best.score - best.standard_error
    assert found.select("1se").n_groups == min(p.n_groups for p in found if p.score >= limit)
    mean = path(mlp, classes(), LAMS[-3:], score=lambda out, y: float((out.argmax(1) == y).double().mean()), steps=5)
    with pytest.raises(ValueError, match="has none: pass standard_error"):
        mean.select("1se")


def test_when_each_group_leaves():
    found = path(lambda: nn.Linear(12, 1), table(), LAMS, batch_size=64)
    leaves = found.leaves()["weight"]
    for j in range(12):
        gone = [p.lam for p in found if not p.kept["weight"][j]]
        assert leaves[j] == (gone[0] if gone else math.inf)


def test_scaling_is_the_same_as_scaled_columns():
    x, y = classes()
    centre, factor = x.mean(0), 1 / x.std(0)
    from dataclasses import replace

    lazy = replace(as_data((x, y)), scaling=(centre, factor))
    a = path(mlp, lazy, LAMS, steps=10, batch_size=64)
    b = path(mlp, ((x - centre) * factor, y), LAMS, steps=10, batch_size=64)
    assert equal(a, b)
    assert a[-1].n_groups < 12


def test_saved_and_loaded(tmp_path):
    found = path(mlp, classes(), LAMS[-4:], steps=4)
    found.save(tmp_path / "path.safetensors")
    again = RegularizationPath.load(tmp_path / "path.safetensors")
    assert equal(found, again)
    assert again.settings == found.settings
    assert [p.n_groups for p in again] == [p.n_groups for p in found]
    assert torch.equal(again.restore(0, mlp())[0].weight, found.restore(0)[0].weight)
    with pytest.raises(ValueError, match="Pass model"):
        again.restore(0)
    (tmp_path / "cut").write_bytes((tmp_path / "path.safetensors").read_bytes()[:-9])
    for name, error in (("cut", ValueError), ("none", FileNotFoundError)):
        with pytest.raises(error):
            RegularizationPath.load(tmp_path / name)


def test_as_a_table_and_a_picture(tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib")
    found = path(mlp, classes(), LAMS[-4:], steps=4)
    frame = found.to_frame()
    assert list(frame["lam"]) == found.lams
    assert list(frame["n_groups"]) == [p.n_groups for p in found]
    figure = dg.plots.path(found)
    figure.savefig(tmp_path / "path.png")
    assert [a.get_xscale() for a in figure.axes] == ["log"] * 3
    with pytest.raises(KeyError, match="no groups named"):
        dg.plots.path(found, "other")
    assert str(found).startswith("RegularizationPath: D = 3, 4 strengths")


class PlusMean(nn.Module):
    """Its linear layer is not the only reader of the data: the mean of all columns is added."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 1)

    def forward(self, x):
        return self.layer(x) + x.mean(1, keepdim=True)


def test_columns_stay_where_something_else_reads_them():
    """Columns that the layer lost may not leave the data: the mean would be another one."""
    x, y = table()
    held = (x, y)
    found = path(
        PlusMean, (x, y), LAMS, validation=held, steps=60, batch_size=64, groups=lambda m: dg.features(m.layer)
    )
    point = next(p for p in found if 0 < p.n_groups < 12)
    with torch.no_grad():
        made = found.restore(point)(x)
    score = 1 - float((made.reshape(y.shape) - y).square().sum() / (y - y.mean(0)).square().sum())
    assert point.score == pytest.approx(score, abs=1e-5)


def test_groups_without_curvature_have_a_largest_strength():
    """By hand: a curvature below a thousandth of the largest counts as that."""
    from dgating.maths._lam import largest_lam

    for depth in (3, 4):
        q = 2 / depth
        found = largest_lam(torch.ones(3).double(), torch.tensor([1.0, 0.0, 1e-5]).double(), depth)
        for lam, height in zip(found.tolist(), (1.0, 1e-3, 1e-3), strict=True):
            r = np.linspace(1e-9, 1 / height, 400_001)
            assert lam == pytest.approx(float(((1 - height * r) * r ** (1 - q) / q).max()), rel=1e-5)


def test_a_concave_loss_has_a_largest_strength():
    """All curvatures below zero count as none."""
    net = nn.Linear(4, 1, bias=False)
    dg.gate_(net, dg.features(net), depth=3)
    x, y = torch.eye(4), torch.ones(4, 1)
    lam = dg.lam_max(net, (x, y), loss=lambda out, y: (y * out - out.square()).reshape(4, -1).sum(1))
    assert 0 < lam < math.inf
