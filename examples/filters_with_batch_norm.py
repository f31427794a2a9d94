"""Channels of a convolutional network: filter, batch norm and readers leave together."""

import torch
from sklearn.datasets import load_digits

import dgating as dg

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.as_tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.as_tensor(labels)


def block(a: int, b: int) -> list[torch.nn.Module]:
    return [torch.nn.Conv2d(a, b, 3, padding=1, bias=False), torch.nn.BatchNorm2d(b), torch.nn.ReLU()]


net = torch.nn.Sequential(
    *block(1, 32), *block(32, 32), torch.nn.MaxPool2d(2), *block(32, 64), torch.nn.AdaptiveAvgPool2d(1),
    torch.nn.Flatten(), torch.nn.Linear(64, 10),
)  # fmt: skip
groups = dg.coupled(net, (x[:4],))
print(groups)
dg.gate_(net, groups)
lam, steps = 0.003, 600
optimizer = torch.optim.SGD(dg.param_groups(net, lam), lr=0.1, momentum=0.9)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
monitor = dg.AbsorptionMonitor(net, lam, optimizer, window=28)
for _ in range(steps):
    rows = torch.randint(len(x), (64,))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
    monitor.update()
    optimizer.step()
    schedule.step()

dg.zero_(net, monitor.absorbed(), optimizer)
dg.collapse_(net.eval())
small = dg.compact(net, (x[:4],))
print("channels:  ", [m.out_channels for m in small if isinstance(m, torch.nn.Conv2d)])
print("accuracy:  ", round(float((small(x).argmax(1) == y).float().mean()), 3))
print(dg.profile(small, (x[:64],), reference=net))
