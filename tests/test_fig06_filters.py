"""Fig. 6: the networks of the paper, augmentation, exact zeros of channels, masks, and gains at equal loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import dgating as dg
from experiments.common.convnets import RESNET18, VGG16, as_tensor, augmented, channels, resnet18, vgg
from experiments.common.experiment import Place, Record
from experiments.fig06_filters import EXPERIMENT
from experiments.fig06_filters.judge import OURS, _reachable, at_loss, chosen, gains, plots, summarise, tables, verdicts
from experiments.fig06_filters.measure import Configuration, Task, cells, parsed, pictures, recalibrated
from experiments.fig06_filters.peer import pruned, regularizer
from experiments.fig06_filters.units import (
    KINDS,
    anchor_,
    close_,
    flops_of_a_channel,
    gated,
    groups_of,
    layer_scales,
    strengths_of,
)

SMOKE: Configuration = EXPERIMENT.configurations["smoke"]

SMALL = {
    "VGG": lambda: vgg(((4, 6), (5,)), hidden=7, classes=3, inputs=2, side=8),
    "ResNet": lambda: resnet18((3, 4, 5, 6), classes=3, inputs=2),
}


def _net(name: str) -> nn.Module:
    """With statistics, scales and shifts that are not those of the start."""
    net = SMALL[name]()
    with torch.no_grad():
        for _, norm in channels(net):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    for _ in range(3):
        net(torch.randn(16, 2, 8, 8))
    return net.eval()


# the networks


def test_sizes_of_the_paper() -> None:
    net = vgg(VGG16, 512, 10, 3, 32)
    assert sum(p.numel() for p in net.parameters()) == 14_986_698  # 14.99 million
    assert sum(conv.out_channels for conv, _ in channels(net)) == 4224
    assert sum(p.numel() for p in resnet18(RESNET18, 100, 3).parameters()) == 11_220_132
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_channels_are_the_pairs_that_follow_each_other(name: str) -> None:
    net, seen = _net(name), []
    for conv, norm in channels(net):
        conv.register_forward_hook(lambda m, i, out: seen.append(out.data_ptr()))
        norm.register_forward_pre_hook(lambda m, i: seen.append(i[0].data_ptr()))
    net(torch.randn(2, 2, 8, 8))
    assert seen[::2] == seen[1::2]
    assert len(seen) == 2 * sum(isinstance(m, nn.Conv2d) for m in net.modules())


# pictures


def test_bytes_to_pictures() -> None:
    grey = torch.arange(2 * 4 * 4, dtype=torch.uint8).reshape(2, 4, 4)
    assert as_tensor(grey).shape == (2, 1, 4, 4)
    assert as_tensor(grey, pool=2)[0, 0, 0, 0] == pytest.approx((0 + 1 + 4 + 5) / 4 / 255)
    assert as_tensor(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 3, 8, 8)


def test_augmentation_is_repeatable_and_moderate() -> None:
    x = torch.zeros(64, 1, 16, 16)
    x[:, :, 7:9, 7:9] = (
        1  # in the middle: it moves by at most an eighth of the side, and what is left of it stays whole
    )
    one, two = (augmented(x, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, two)
    mass = one.sum((1, 2, 3))
    assert float((mass - 4).abs().max()) < 1
    rows, columns = one.sum((1, 3)), one.sum((1, 2))
    at = torch.arange(16.0) - 7.5
    for axis in (rows, columns):
        centre = (axis * at).sum(1) / mass
        assert 1 < float(centre.abs().max()) < 2.2
        assert float(centre.min()) < -0.5
        assert float(centre.max()) > 0.5


def test_flips() -> None:
    x = torch.zeros(200, 1, 9, 9)
    x[:, :, 4, 1] = 1
    sides = augmented(x, torch.Generator().manual_seed(0)).sum(2)[:, 0]
    left = sides[:, :4].sum(1) > sides[:, 5:].sum(1)
    assert 60 < int(left.sum()) < 140
    still = augmented(x, torch.Generator().manual_seed(0), flip=False).sum(2)[:, 0]
    assert bool((still[:, :4].sum(1) >= still[:, 5:].sum(1)).all())


# exact zeros


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [None, 3])
def test_without_channels_compacts_to_the_same_function(name: str, kind: str, depth: int | None) -> None:
    net, x = _net(name), torch.randn(5, 2, 8, 8)
    before = copy.deepcopy(net)
    units = gated(net, x, kind, depth)
    torch.testing.assert_close(units.without({})(x), before(x))
    full = units.without(units.smallest(0.5, keep=1))
    kept = full(x)
    left = close_(full)
    total = sum(conv.out_channels for conv, _ in channels(net))
    assert len(channels(net)) <= left < total
    for conv, norm in channels(full):
        gone = (conv.weight.flatten(1) == 0).all(1)
        assert not norm.weight[gone].any()
        assert not norm.bias[gone].any()
        assert bool((norm.weight[~gone] != 0).all())
    if kind in ("coupled", "norms"):
        torch.testing.assert_close(full(x), kept)  # the shift was part of the group: closing changes nothing
    else:
        assert not torch.allclose(full(x), kept)
    small = dg.compact(full, (x,))
    torch.testing.assert_close(small(x), full(x), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in before.parameters())


def test_units_of_a_residual_network_share_their_channels() -> None:
    """The stem and both second convolutions of the first stage add up: one group for a channel of all three."""
    net, x = _net("ResNet"), torch.randn(2, 2, 8, 8)
    sizes = {kind: [g.sizes.tolist() for g in groups_of(net, x, kind)] for kind in KINDS}
    assert sum(map(len, sizes["filters"])) == sum(conv.out_channels for conv, _ in channels(net))
    assert sum(map(len, sizes["coupled"])) == sum(map(len, sizes["norms"])) < sum(map(len, sizes["filters"]))
    assert sizes["norms"][0] == [6, 6, 6]  # scale and shift of three norms
    assert sizes["scales"][0] == [3, 3, 3]
    assert sizes["coupled"][0] == [2 * 9 + 2 * 27 + 6] * 3


def test_close_counts_what_is_left() -> None:
    net = _net("VGG")
    assert close_(net) == 15
    (conv, _), (_, norm), _ = channels(net)
    with torch.no_grad():
        conv.weight[1] = 0
        norm.weight[0] = 0
    assert close_(net) == 13
    assert norm.bias[0] == 0


def test_anchor_gives_every_layer_its_scale_back_and_keeps_the_balance() -> None:
    net = _net("VGG")
    gated(net, torch.randn(2, 2, 8, 8), "coupled", 3)
    scales, norms, balance = layer_scales(net), dg.group_norms(net), dg.imbalance(net)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "original" in name or name.endswith("gamma"):
                p.mul_(0.5)
    anchor_(net, scales)
    torch.testing.assert_close(layer_scales(net), scales)
    for name, after in dg.group_norms(net).items():
        torch.testing.assert_close(after, norms[name])
        torch.testing.assert_close(dg.imbalance(net)[name], balance[name], rtol=1e-4, atol=1e-5)


def test_recalibrated_has_the_statistics_of_the_pictures() -> None:
    net, x = _net("VGG"), torch.randn(300, 2, 8, 8)
    fresh = recalibrated(net, x, rows=256, batch=256)
    conv, norm = channels(fresh)[0]
    out = conv(x[:256])
    torch.testing.assert_close(norm.running_mean, out.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum is None
    assert channels(net)[0][1].momentum == 0.1


def test_penalties_are_those_of_their_papers() -> None:
    net, x = _net("VGG"), torch.randn(2, 2, 8, 8)
    filters = sum(float(f.norm()) for conv, _ in channels(net) for f in conv.weight.detach())
    scales = sum(float(norm.weight.detach().abs().sum()) for _, norm in channels(net))
    for kind, expected in (("filters", filters), ("scales", scales)):
        units = gated(copy.deepcopy(net), x, kind, None)
        assert float(units.penalty(dict.fromkeys(units.price, 0.5)).detach()) == pytest.approx(0.5 * expected, rel=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_torch_pruning_trains_and_prunes(name: str) -> None:
    pytest.importorskip("torch_pruning")
    net, x = _net(name), torch.randn(4, 2, 8, 8)
    before = sum(p.numel() for p in net.parameters())
    small = pruned(net, x, 0.5)
    assert small(x).shape == net(x).shape
    assert sum(p.numel() for p in small.parameters()) < before == sum(p.numel() for p in net.parameters())
    step = regularizer(net, x, 0.1)
    net(x).sum().backward()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    step(torch.optim.SGD(net.parameters(), lr=0.1))
    changed = [not torch.equal(g, p.grad) for g, p in zip(gradients, net.parameters(), strict=True)]  # type: ignore[arg-type]
    assert any(changed)


# the data


def test_pictures_to_choose_by_are_not_trained_on() -> None:
    task = SMOKE.tasks[0]
    rows = pictures(task, Place())
    trained = {tuple(x.flatten().tolist()) for x in rows.X}
    held = [tuple(x.flatten().tolist()) for x in rows.parts["validation"][0]]
    assert len(held) == task.held_out
    assert sum(h in trained for h in held) <= 1  # two of scikit-learn's digits may be alike
    assert rows.X.mean().item() == pytest.approx(0, abs=1e-4)


def test_cells_of_every_scale_name_known_methods() -> None:
    for c in EXPERIMENT.configurations.values():
        for cell in cells(c):
            parsed(cell["method"])
        own = {task.name: dict(task.grids) for task in c.tasks}
        first = [cell for cell in cells(c) if cell["method"] in c.once and cell["method"] not in own[cell["task"]]]
        assert {(cell["task"], cell["seed"]) for cell in first} <= {(c.tasks[0].name, 0)}


def test_names_of_methods() -> None:
    assert parsed("coupled, D = 4") == ("coupled", "D = 4")
    assert parsed("coupled, anchored D = 3") == ("coupled", "anchored D = 3")
    assert parsed("coupled, quick D = 3") == ("coupled", "quick D = 3")
    assert parsed("dense") == ("", "dense")
    for wrong in ("coupled", "blocks, D = 3", "filters, magic"):
        with pytest.raises(ValueError, match="expected 'dense'"):
            parsed(wrong)


# judging


def _record(method: str, lam: float, seed: int, *points: tuple[float, float, float], by: str = "filters") -> Record:
    """Points of accuracy to choose by, accuracy to report, gain in FLOPs (parameters and time alike)."""
    found = {
        "validation": 0.9, "test": 0.9, "filters": 10,
        "points": [
            {"left": 5, "own": i == 0, "by": by, "ratio": 0.5, "parameters": [100, 100 / g], "flops": [100, 100 / g],
             "speedup": g, "accuracy": {t: {"validation": v, "test": a} for t in ("kept", "closed", "recalibrated")}}
            for i, (v, a, g) in enumerate(points)
        ],
    }  # fmt: skip
    return Record({"task": "t", "method": method, "lam": lam, "seed": seed}, found, 1.0)


C = Configuration(tasks=(Task("t", "digits", rows=8000),), grids={}, epochs=20)


def test_gains_are_linear_between_networks_and_reported_on_other_pictures() -> None:
    records = [
        _record("dense", 0.0, 0, (0.9, 0.9, 1.0), (0.86, 0.7, 2.0)),
        _record("dense", 0.0, 1, (0.9, 0.9, 1.0), (0.7, 0.9, 8.0)),
        _record("filters, D = 3", 0.1, 0, (0.895, 0.8, 4.0)),
        _record("filters, D = 3", 1.0, 0, (0.85, 0.9, 16.0)),
        _record("filters, D = 3", 0.1, 1, (0.5, 0.9, 32.0)),
    ]
    task = summarise(C, records)["t"]
    # costs 1 at 0.9 and 1/2 at 0.86 (1/8 at 0.7): at 0.89 a quarter (a twentieth) of the way
    assert gains(task, "dense by filters", "flops", 0.01) == pytest.approx([1 / 0.875, 1 / 0.95625])
    # 8/9 of the way from 1/16 at 0.85, 0.9 on the test pictures, to 1/4 at 0.895 and 0.8
    more, test = at_loss(task, "filters, D = 3", 0.01)[0]
    assert more == pytest.approx(1 / (1 / 16 + 8 / 9 * 3 / 16))
    assert test == pytest.approx(0.9 - 8 / 9 * 0.1)
    assert at_loss(task, "filters, D = 3", 0.051)[0] == pytest.approx((16.0, 0.9))  # nothing is cheaper
    point = chosen(task, "filters, D = 3", 0, 0.01)
    assert point is not None
    assert point["flops"] == 4.0
    assert chosen(task, "filters, D = 3", 1, 0.01) is None


def test_times_are_compared_on_one_machine() -> None:
    records = [_record("dense", 0.0, seed, (0.9, 0.9, 1.0)) for seed in (0, 1)]
    records += [_record("filters, D = 3", 0.1, seed, (0.9, 0.9, 4.0)) for seed in (0, 1)]
    records[3].environment["cpu"] = "another"
    task = summarise(C, records)["t"]
    assert gains(task, "filters, D = 3", "flops", 0.01) == [4.0, 4.0]
    assert gains(task, "filters, D = 3", "speedup", 0.01) == [4.0]
    records[2].environment["cpu"] = "another"
    task = summarise(C, records)["t"]
    assert gains(task, "filters, D = 3", "speedup", 0.01) == []
    assert "| filters, D = 3 | 4.0 ± 0.0 | 4.0 ± 0.0 | – |" in tables(C, {"t": task})
    task["points"]["filters, D = 3"][0][0]["share"] = 0.0  # every channel is dead
    assert plots(C, {"t": task})


def _verdicts(ours: float, theirs: float) -> dict[str, str]:
    """Gains at every loss, of gated and of other methods."""
    records = [_record("dense", 0.0, 0, (0.9, 0.9, 1.0), (0.9, 0.9, theirs))]
    records += [_record(m, 0.1, 0, (0.9, 0.9, theirs)) for m in ("filters, direct", "scales, direct", "torch-pruning")]
    for m in ("filters, D = 2", "filters, D = 3", "filters, D = 4", OURS[0]):
        record = _record(m, 0.1, 0, (0.9, 0.9, ours))
        record.found["points"][0]["left"] = 5 if (m == "filters, D = 2") == (ours > theirs) else 3
        records.append(record)
    found = verdicts(C, summarise(C, records))
    return {v.claim.split()[0]: v.status for v in found} | {"count": str(len(found))}


def test_verdicts_by_hand() -> None:
    good, bad = _verdicts(4.0, 2.0), _verdicts(2.0, 4.0)
    assert {good[k] for k in ("gated", "D", "the", "a")} == {"reproduced"}
    assert {bad[k] for k in ("gated", "D", "the")} == {"not reproduced"}
    assert bad["a"] == "reproduced"  # time follows FLOPs
    assert good["count"] == bad["count"]


def test_lams_whose_zeros_cannot_be_seen_in_time_do_not_count() -> None:
    """20 epochs of 63 steps, a cosine from 0.1, momentum 0.9: τ = 630, exp(-2 λ τ) below 1.2e-7 from λ = 0.0127."""
    assert not _reachable(C, "t", 0.0126)
    assert _reachable(C, "t", 0.0128)


# prices


def test_price_is_what_the_network_saves_without_a_channel() -> None:
    """By hand, two FLOPs a multiply-add: of a channel its own convolution and its part of the next layer."""
    net, x = _net("VGG"), torch.randn(1, 2, 8, 8)
    units = gated(net, x, "coupled", 3)
    costs = flops_of_a_channel(units, x)
    expected = [2 * 9 * 64 * (2 + 6), 2 * 9 * (64 * 4 + 16 * 5), 2 * (9 * 16 * 6 + 4 * 7)]
    assert list(costs.values()) == pytest.approx(expected)
    lams = strengths_of(units, x, 0.1, 0.5)
    a, b, _ = lams.values()
    assert a / b == pytest.approx((expected[0] / expected[1]) ** 0.5)
    assert sum(lam * n for lam, n in zip(lams.values(), (4, 6, 5), strict=True)) == pytest.approx(0.1 * 15)
    assert set(strengths_of(units, x, 0.1, 0.0).values()) == {0.1}
