"""Two gloo processes, DDP and FSDP2, walk the same path as one process; the monitor certifies the same groups."""

from __future__ import annotations

import socket
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import dgating as dg

STEPS, LAM = 30, 0.1


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 2))
    rows = torch.tensor([0, 0, 1, -1])
    unit = dg.tie(dg.by_dim(net[0], 0), dg.by_dim(net[1], 0), dg.by_dim(net[1], 0, name="bias"), name="units")
    return dg.gate_(net, [unit, dg.by_labels(net[3], rows[:, None], group_name="rows")], depth=3)


def _data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(64, 6, generator=generator)
    return x, x[:, :2] * 2


def _train(
    net: nn.Module, root: nn.Module, x: Tensor, y: Tensor, penalty: str
) -> tuple[torch.optim.Optimizer, list[Tensor], list[Tensor]]:
    """Losses are means over the rows of this process; gradients are averaged by the wrapper."""
    decay = penalty == "decay"
    optimizer = torch.optim.SGD(dg.param_groups(root, LAM if decay else 0.0), lr=0.05, momentum=0.9)
    monitor = dg.AbsorptionMonitor(root, LAM, optimizer, window=10, penalty_in_loss=not decay)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        (loss + dg.penalty(root, LAM) if penalty == "loss" else loss).backward()
        if penalty == "gradient":
            dg.add_penalty_grad_(root, LAM)
        monitor.update()
        optimizer.step()
    return optimizer, list(dg.group_norms(root).values()), list(monitor.margins().values())


def _worker(rank: int, port: int, kind: str, expected: dict[str, list[Tensor]]) -> None:
    """Every way to add the penalty, one after the other: a process costs far more than a training."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        for penalty, values in expected.items():
            _walk(rank, kind, penalty, values)
    finally:
        dist.destroy_process_group()


def _walk(rank: int, kind: str, penalty: str, expected: list[Tensor]) -> None:
    root = net = _net()
    if kind == "ddp":
        net = nn.parallel.DistributedDataParallel(root)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        fully_shard(root[5], mesh=mesh)
        fully_shard(root, mesh=mesh)  # tied groups lie in one unit
    x, y = _data()
    optimizer, norms, margins = _train(net, root, x[rank::2], y[rank::2], penalty)
    masks = {"units": torch.arange(8) < 3}
    dg.zero_(root, masks)
    with pytest.raises(ValueError, match="3 groups of 'units' are exactly zero, but its state"):
        dg.check_optimizer(root, optimizer, LAM, penalty != "decay")
    dg.zero_(root, masks, optimizer)
    dg.check_optimizer(root, optimizer, LAM, penalty != "decay")
    assert (dg.group_norms(root)["units"] == 0).tolist() == [True] * 3 + [False] * 5
    if kind == "fsdp2":
        with pytest.raises(ValueError, match="sharded"):
            dg.collapse_(root)
    for got, want in zip(norms + margins, expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-4, msg=lambda said: f"{penalty}: {said}")


@pytest.mark.parametrize(
    ("kind", "penalties"), [("ddp", ("decay", "gradient")), ("fsdp2", ("decay", "loss", "gradient"))]
)
def test_two_processes_equal_one(kind: str, penalties: tuple[str, ...]) -> None:
    expected = {}
    for penalty in penalties:
        root = _net()
        _, norms, margins = _train(root, root, *_data(), penalty)
        expected[penalty] = norms + margins
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_worker, args=(port, kind, expected), nprocs=2, join=True)
