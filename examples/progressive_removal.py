"""Remove dead units while training goes on: the steps get cheaper, and the optimizer keeps its state."""

import torch
from sklearn.datasets import load_digits

import dgating as dg

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
data = torch.as_tensor(images, dtype=torch.float32) / 16, torch.as_tensor(labels)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))


found = dg.budget_path(
    model, data, parameters=0.2, groups=lambda net: dg.neurons(net, (data[0][:4],)), steps=30, seed=0
)
print(found.to_frame() if False else found)
end = found.restore(found[-1])
print("ends with", sum(p.numel() for p in end.parameters()), "of", sum(p.numel() for p in model().parameters()))
