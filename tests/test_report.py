"""The report and the plots: numbers that can be worked out by hand, plain data, and every name on the page."""

import json
import math

import matplotlib.axes
import pytest
import torch
from torch import nn

import dgating as dg


def by_hand():
    """Two inputs of norms 5 and 0.5 and a tied pair; depth 3 and 2."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[3.0, 0.5], [4.0, 0.0]]))
        net[2].weight.fill_(2.0)
        net[3].weight.fill_(1.0)
    dg.gate_(net, dg.features(net[0], name="inputs"), depth=3)
    dg.gate_(net, dg.tie(dg.whole(net[2]), dg.whole(net[3]), name="pair"), depth=2)
    return net


def many_parts():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3))
    return dg.gate_(net, dg.filters(net))


@pytest.fixture
def trained():
    """A few steps of training with a monitor: three of four inputs are noise."""
    net = nn.Linear(4, 1)
    dg.gate_(net, dg.features(net, name="inputs"), depth=3)
    optimizer = torch.optim.SGD(dg.param_groups(net, 0.1), lr=0.1)
    monitor = dg.AbsorptionMonitor(net, 0.1, optimizer, window=10)
    x = torch.randn(128, 4)
    for _ in range(120):
        optimizer.zero_grad()
        (net(x) - x[:, :1]).square().mean().backward()
        monitor.update()
        optimizer.step()
    return net, monitor


def test_numbers_of_a_report():
    net = by_hand()
    report = dg.report(net)
    first, pair = report.rows
    assert (first.groups, first.depth, first.n_groups, first.kept, first.absorbed) == ("inputs", 3, 2, 2, None)
    assert (first.parameters, first.kept_parameters) == (4, 4)
    assert (first.norm_min, first.norm_max) == pytest.approx((0.5, 5.0))
    assert first.imbalance == pytest.approx(25 - 1)
    bias = net[2].bias.item()  # part of the group: whole takes every parameter
    assert (pair.groups, pair.depth, pair.n_groups, pair.parameters) == ("pair", 2, 1, 4)
    assert pair.norm_min == pair.norm_median == pair.norm_max == pytest.approx(math.sqrt(4 + 4 + 1 + bias**2))
    assert pair.imbalance == pytest.approx(8 + bias**2)
    assert report.extra_parameters == 2 * 2 + 1
    assert report.parameters == 6 + 4 + report.extra_parameters
    assert report.tol == pytest.approx(torch.finfo(torch.float32).eps)


def test_kept_counts_what_lies_above_the_tolerance():
    net = by_hand()
    row = dg.report(net, tol=0.5).rows[0]  # 0.5 itself is not above
    assert (row.kept, row.kept_parameters) == (1, 2)
    dg.zero_(net, {"inputs": torch.tensor([True, False])})
    row = dg.report(net, tol=0.0).rows[0]
    assert (row.kept, row.kept_parameters, row.norm_min) == (1, 2, 0.0)
    assert dg.sparsity(net, tol=0.0)["inputs"] == 0.5


def test_the_median_of_an_even_number_lies_between():
    row = dg.report(by_hand()).rows[0]
    assert row.norm_median == pytest.approx((0.5 + 5.0) / 2)


def test_diagnostics_by_hand():
    net = by_hand()
    assert dg.group_norms(net)["inputs"].tolist() == pytest.approx([5.0, 0.5])
    assert dg.imbalance(net)["inputs"].tolist() == pytest.approx([24.0, 0.75])
    pair = 9 + net[2].bias.item() ** 2
    expected = (25 + 2) / 3 - 25 ** (1 / 3) + (0.25 + 2) / 3 - 0.25 ** (1 / 3) + (pair + 1) / 2 - math.sqrt(pair)
    assert float(dg.misalignment(net)) == pytest.approx(expected, rel=1e-6)
    assert dg.sparsity(net, tol=1.0) == {"inputs": 0.5, "pair": 0.0}


def test_report_changes_nothing():
    net = by_hand()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    dg.report(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_certified_groups_are_counted(trained):
    net, monitor = trained
    (row,) = dg.report(net, monitor).rows
    assert row.absorbed == int(monitor.absorbed()["inputs"].sum())
    assert 0 < row.absorbed < row.n_groups
    assert "certified" in str(dg.report(net, monitor))
    assert "certified" not in str(dg.report(net))


def test_certified_groups_are_counted_part_by_part():
    net = many_parts()
    monitor = dg.AbsorptionMonitor(net, 0.1)
    dg.zero_(net, {"filters": torch.arange(10) >= 3})  # exact zeros are certified
    assert [(row.absorbed, row.kept) for row in dg.report(net, monitor).rows] == [(1, 3), (6, 0)]


@pytest.mark.parametrize("make", [by_hand, many_parts])
def test_to_dict_is_json(make):
    report = dg.report(make())
    again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert again["parameters"] == report.parameters
    assert [row["label"] for row in again["rows"]] == [row.label for row in report.rows]
    assert set(again["rows"][0]) == set(dg.report(make()).to_dict()["rows"][0])


def test_to_dict_with_a_monitor_is_json(trained):
    net, monitor = trained
    assert json.loads(json.dumps(dg.report(net, monitor).to_dict()))["rows"][0]["absorbed"] > 0


def test_to_frame():
    report = dg.report(by_hand())
    frame = report.to_frame()
    assert frame["groups"].tolist() == ["inputs", "pair"]
    assert frame["parameters"].sum() == 8
    assert list(frame.columns) == list(report.to_dict()["rows"][0])


@pytest.mark.parametrize("make", [by_hand, many_parts])
def test_the_printed_report_shows_every_name(make):
    net = make()
    text = str(dg.report(net))
    assert repr(dg.report(net)) == text
    assert len(text.splitlines()) >= 4
    for row in dg.report(net).rows:
        assert row.groups in text, text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_parts_of_one_name_are_told_apart_in_print():
    text = str(dg.report(many_parts()))
    assert "0.weight" in text
    assert "2.weight" in text


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "[bold]"])
def test_a_name_is_printed_as_it_is(name):
    net = nn.Linear(4, 2)
    dg.gate_(net, dg.features(net, name=name))
    assert name in str(dg.report(net))


def test_a_very_long_name_is_printed_in_full():
    net, name = nn.Linear(4, 2), "block." * 40 + "weight"
    dg.gate_(net, dg.features(net, name=name))
    cells = [line.split("│")[1].strip() for line in str(dg.report(net)).splitlines() if line.count("│") > 2]
    assert name in "".join(cells)


def test_report_of_half_precision():
    net = nn.Linear(4, 2).to(torch.bfloat16)
    dg.gate_(net, dg.features(net))
    row = dg.report(net).rows[0]
    expected = net.weight.detach().float().norm(dim=0)
    assert (row.norm_min, row.norm_max) == pytest.approx((float(expected.min()), float(expected.max())))


def png(axes, path):
    axes.get_figure().savefig(path)
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_of_norms(tmp_path):
    axes = dg.plots.group_norms(by_hand())
    assert isinstance(axes, matplotlib.axes.Axes)
    assert png(axes, tmp_path / "norms.png")
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["inputs", "pair"]
    x, y = axes.get_lines()[0].get_data()
    assert list(x) == pytest.approx([0.25, 0.75])
    assert list(y) == pytest.approx([5.0, 0.5])
    assert axes.get_yscale() == "log"


def test_plot_of_norms_marks_certified_groups_and_draws_zeros(trained, tmp_path):
    net, monitor = trained
    masks = monitor.absorbed()
    dg.zero_(net, masks)
    axes = dg.plots.group_norms(net, monitor, tol=1e-5)
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [len(line.get_xdata()) for line in crosses] == [int(masks["inputs"].sum())]
    assert png(axes, tmp_path / "norms.png")


def test_plots_draw_on_given_axes(trained):
    from matplotlib.figure import Figure

    left, right = Figure().subplots(1, 2)
    net, monitor = trained
    assert dg.plots.group_norms(net, ax=left) is left
    assert dg.plots.history(monitor, ax=right) is right
    assert left.get_lines()
    assert right.get_lines()


def test_plot_of_history(trained, tmp_path):
    _, monitor = trained
    axes = dg.plots.history(monitor)
    assert png(axes, tmp_path / "history.png")
    certified, below = axes.get_lines()
    assert list(certified.get_xdata()) == list(range(10, 121, 10))
    assert certified.get_ydata()[-1] == pytest.approx(float(monitor.absorbed()["inputs"].float().mean()))
    assert below.get_linestyle() == ":"
    again = dg.plots.history(monitor.history)
    assert list(again.get_lines()[0].get_ydata()) == list(certified.get_ydata())


@pytest.mark.parametrize("name", [r"$\frac", "$x^2$", "a_b"])
def test_names_in_plots_are_no_formulas(name, tmp_path):
    net = nn.Linear(4, 2)
    dg.gate_(net, dg.features(net, name=name))
    axes = dg.plots.group_norms(net)
    assert png(axes, tmp_path / "norms.png")
    assert [(t.get_text(), t.get_parse_math()) for t in axes.get_legend().get_texts()] == [(name, False)]
    row = {"step": 100, "groups": {name: {"groups": 8, "absorbed": 2, "below_threshold": 0}}}
    assert png(dg.plots.history([row]), tmp_path / "history.png")


def test_history_is_ready_for_json(trained):
    _, monitor = trained
    rows = json.loads(json.dumps(monitor.history, default=int))
    assert len(rows) == 12
    assert set(rows[0]["groups"]["inputs"]) == {"groups", "absorbed", "below_threshold"}
