"""A compact model, saved without pickle, exported, and checked."""

import torch

import dgating as dg

torch.manual_seed(0)


def build() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()


net, batch = build(), torch.randn(8, 16)
with torch.no_grad():
    net[0].weight[:40] = 0  # as training would
    net[0].bias[:40] = 0
small = dg.compact(net, (batch,))
dg.save_compact(small, "small.safetensors")
again = dg.load_compact(build(), "small.safetensors")
print("loaded: ", again[0], torch.equal(again(batch), small(batch)))
print("program:", dg.export(small, (batch,), "small.pt2"))
print("onnx:   ", dg.export(small, (batch,), "small.onnx"))
