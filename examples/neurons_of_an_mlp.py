"""Train a network on digits, lose most of its hidden units, and keep the function to the last digit."""

import torch
from sklearn.datasets import load_digits

import dgating as dg

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.as_tensor(images, dtype=torch.float32) / 16, torch.as_tensor(labels)
net = torch.nn.Sequential(
    torch.nn.Linear(64, 200), torch.nn.ReLU(), torch.nn.Linear(200, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10)
)

lam = 0.01
dg.gate_(net, dg.neurons(net, (x[:4],)))  # the rows of a layer and the columns that read them
optimizer = torch.optim.SGD(dg.param_groups(net, lam), lr=0.1, momentum=0.9)
monitor = dg.AbsorptionMonitor(net, lam, optimizer, window=50)
for _ in range(1500):
    rows = torch.randint(len(x), (64,))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
    monitor.update()
    optimizer.step()

dg.zero_(net, monitor.absorbed(), optimizer)
dg.collapse_(net)
small = dg.compact(net, (x[:4],))
print("widths:    ", [layer.out_features for layer in small if isinstance(layer, torch.nn.Linear)])
print("parameters: %d -> %d" % small.compaction.parameters)
print("difference:", float((net(x) - small(x)).abs().max()))
print("accuracy:  ", round(float((small(x).argmax(1) == y).float().mean()), 3))
