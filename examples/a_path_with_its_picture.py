"""Choose λ by cross-validation along a path, and draw it."""

import torch
from sklearn.datasets import load_diabetes

import dgating as dg

x, y = load_diabetes(return_X_y=True)
x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
data = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32).unsqueeze(1)


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))


found = dg.cross_validate_path(model, data, folds=3, lams=12, groups=lambda net: dg.features(net[0], name="inputs"))
chosen = found.select("1se")
print(f"λ = {chosen.lam:.3g}: {chosen.n_groups} of 10 inputs, score {chosen.score:.2f}")
dg.plots.cross_validation(found).savefig("cross_validation.png")
dg.plots.path(found.path).savefig("path.png")
