"""Heads and hidden units of a transformer encoder, found in its graph."""

import torch

import dgating as dg

torch.manual_seed(0)
layer = torch.nn.TransformerEncoderLayer(32, nhead=4, dim_feedforward=64, batch_first=True, dropout=0.0)
net = torch.nn.Sequential(torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.nn.Linear(32, 2)).eval()
batch = torch.randn(8, 12, 32)

heads, neurons = dg.heads(net, (batch,)), dg.neurons(net, (batch,))
print(heads, neurons, sep="\n")
dg.gate_(net, [*heads, *neurons])
dg.zero_(net, {group.name: torch.arange(group.n_groups) % 2 == 0 for group in [*heads, *neurons]})  # as training would
dg.collapse_(net)
small = dg.compact(net, (batch,))
print(small.compaction)
print("difference:", float((net(batch) - small(batch)).abs().max()))
