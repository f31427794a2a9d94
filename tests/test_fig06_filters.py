"""Fig. 6: the networks of the paper, augmentation, exact zeros of channels, masks, and gains at equal loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import dgating as dg
from experiments.common.convnets import RESNET18, VGG16, as_tensor, augmented, channels, resnet18, vgg
from experiments.common.experiment import Record
from experiments.fig06_filters.judge import reached, summarise
from experiments.fig06_filters.measure import Configuration, Task, parsed, penalty, recalibrated
from experiments.fig06_filters.units import KINDS, anchor_, close_, gate, lowest, root_mean_square, without

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
@pytest.mark.parametrize("kind", [None, *KINDS])
def test_without_channels_compacts_to_the_same_function(name: str, kind: str | None) -> None:
    net, x = _net(name), torch.randn(5, 2, 8, 8)
    before = copy.deepcopy(net)
    mask: Any = torch.zeros(sum(conv.out_channels for conv, _ in channels(net)), dtype=torch.bool)
    mask[[0, 2, 5]] = True
    if kind:
        gate(net, x, kind, 3)
        (groups, norms), *others = dg.group_norms(net).items()
        assert not others
        mask = {groups: torch.arange(len(norms)) % 3 == 0}
    full = without(net, mask)
    assert dg.is_gated(net) == bool(kind)
    assert not dg.is_gated(full)
    dead = [int((conv.weight.flatten(1) == 0).all(1).sum()) for conv, _ in channels(full)]
    assert sum(dead) >= 3
    for conv, norm in channels(full):
        gone = (conv.weight.flatten(1) == 0).all(1)
        assert not norm.weight[gone].any()
        assert not norm.bias[gone].any()
        assert bool((norm.weight[~gone] != 0).all())
    small = dg.compact(full, (x,))
    torch.testing.assert_close(small(x), full(x), rtol=0, atol=1e-5)
    if name == "VGG":
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in before.parameters())


def test_close_counts_what_is_left() -> None:
    net = _net("VGG")
    assert close_(net) == 15
    (conv, _), (_, norm), _ = channels(net)
    with torch.no_grad():
        conv.weight[1] = 0
        norm.weight[0] = norm.bias[0] = 0
        norm.weight[1] = 0  # a constant channel: not dead
    assert close_(net) == 13


def test_lowest_by_hand() -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 0.1, 0.2])
    assert lowest(values, (3, 2), 0.4).tolist() == [False, True, False, True, False]  # 0.2 is the largest of its layer
    assert int(lowest(values, (3, 2), 1.0).sum()) == 3
    assert int(lowest(values, (3, 2), 0.0).sum()) == 0


def test_anchor_gives_every_layer_its_scale_back() -> None:
    net = _net("VGG")
    gate(net, torch.randn(2, 2, 8, 8), "anchored", 3)
    scales = root_mean_square(net)
    norms = dg.group_norms(net)["channels"]
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "parametrizations" in name and "original" in name:
                p.mul_(0.5)
    anchor_(net, scales)
    torch.testing.assert_close(torch.stack(root_mean_square(net)), torch.stack(scales))
    after = dg.group_norms(net)["channels"]
    torch.testing.assert_close(after / after[0], norms / norms[0], rtol=1e-4, atol=1e-6)


def test_recalibrated_has_the_statistics_of_the_pictures() -> None:
    net, x = _net("VGG"), torch.randn(300, 2, 8, 8)
    fresh = recalibrated(net, x, rows=256, batch=256)
    conv, norm = channels(fresh)[0]
    out = conv(x[:256])
    torch.testing.assert_close(norm.running_mean, out.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum is None
    assert channels(net)[0][1].momentum == 0.1


def test_penalties_by_hand() -> None:
    net = _net("VGG")
    filters = sum(float(f.norm()) for conv, _ in channels(net) for f in conv.weight.detach())
    assert float(penalty("direct", 0.5)(net).detach()) == pytest.approx(0.5 * filters, rel=1e-5)
    scales = sum(float(norm.weight.detach().abs().sum()) for _, norm in channels(net))
    assert float(penalty("slimming", 0.5)(net).detach()) == pytest.approx(0.5 * scales, rel=1e-5)
    assert penalty("filters", 0.5) is None


def test_names_of_methods() -> None:
    assert parsed("coupled, D = 4") == ("coupled", 4)
    assert parsed("slimming") == ("slimming", None)
    for wrong in ("coupled", "blocks, D = 3", "slimming, D = 2"):
        with pytest.raises(ValueError, match="expected a kind"):
            parsed(wrong)


# judging


def test_gain_at_equal_loss_by_hand() -> None:
    def record(method: str, lam: float, seed: int, points: list[tuple[float, float]], accuracy: float = 0.9) -> Record:
        found = {
            "accuracy": accuracy, "filters": 10,
            "points": [{"left": 5, "accuracy": a, "recalibrated": a, "parameters": [100, 50], "flops": [100, 100 / g],
                        "speedup": 1.0, "latency_ms": [1.0, 1.0]} for a, g in points],
        }  # fmt: skip
        return Record({"task": "t", "method": method, "lam": lam, "seed": seed}, found, 1.0)

    c = Configuration(tasks=(Task("t", "digits"),), methods=(), lams=())
    records = [
        record("magnitude", 0.0, 0, [(0.9, 1.0), (0.86, 2.0)]),
        record("magnitude", 0.0, 1, [(0.9, 1.0), (0.7, 8.0)]),
        record("filters, D = 3", 0.1, 0, [(0.895, 4.0)]),
        record("filters, D = 3", 1.0, 0, [(0.85, 16.0)]),
        record("filters, D = 3", 0.1, 1, [(0.5, 32.0)]),
    ]
    task = summarise(c, records)["t"]
    assert reached(task, "magnitude", "flops", 0.01) == [1.0, 1.0]
    assert reached(task, "magnitude", "flops", 0.05) == [2.0, 1.0]
    assert reached(task, "filters, D = 3", "flops", 0.01) == [4.0, 1.0]
    assert reached(task, "filters, D = 3", "flops", 0.05) == pytest.approx([16.0, 1.0])
