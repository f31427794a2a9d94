"""Redraw a model's parameters and buffer statistics, so that no value is zero or one by initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

SCALES = ("norm", "scale", "gamma", "lambda", "bn")  # names of one-dimensional weights that multiply


@torch.no_grad()
def randomise_(model: nn.Module, seed: int) -> nn.Module:
    """Weights with deviation 1/sqrt(fan in), biases 0.1, norm scales 1 + 0.1, batch statistics random and positive."""
    generator = torch.Generator().manual_seed(seed)
    done: set[nn.Parameter] = set()
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            if param not in done:
                done.add(param)
                param.copy_(_draw(module, name, param, generator))
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
    return model


def _draw(module: nn.Module, name: str, param: nn.Parameter, generator: torch.Generator) -> Tensor:
    noise = torch.randn(param.shape, generator=generator)
    if param.dim() <= 1:
        multiplies = name == "weight" or any(word in name.lower() for word in SCALES)
        return 1 + 0.1 * noise if multiplies and "bias" not in name else 0.1 * noise
    return noise / _fan_in(module, param) ** 0.5


def _fan_in(module: nn.Module, param: nn.Parameter) -> int:
    """All but the first dimension, with two exceptions: GPT-2's (inputs, outputs), stacked experts."""
    if type(module).__name__ == "Conv1D":
        return param.shape[0]
    if isinstance(module, nn.Conv1d) or param.dim() != 3:
        return param.shape[1:].numel()
    return param.shape[-1]
