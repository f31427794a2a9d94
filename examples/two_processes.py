"""Data parallel training in two processes: gate first, then wrap; both certify the same groups."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import dgating as dg


def worker(rank: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    x = torch.randn(400, 10)
    y = x[:, :1] - 2 * x[:, 1:2]
    net = torch.nn.Linear(10, 1)
    dg.gate_(net, dg.features(net, name="inputs"))
    optimizer = torch.optim.SGD(dg.param_groups(net, lam=0.05), lr=0.05)
    monitor = dg.AbsorptionMonitor(net, 0.05, optimizer, window=20)
    parallel = torch.nn.parallel.DistributedDataParallel(net)
    for _ in range(400):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(parallel(x[rank::2]), y[rank::2]).backward()
        monitor.update()
        optimizer.step()
    print(f"process {rank}: {int(monitor.absorbed()['inputs'].sum())} of 10 inputs certified", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(worker, nprocs=2)
