"""Independent checks of a task's oracle, by what the zeroed model computes and by which gradients vanish."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.zoo._family import Family, Inputs
from benchmarks.zoo._zero import Marks, Task


def call(model: nn.Module, inputs: Inputs) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


def run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that the model gives back."""
    with torch.no_grad():
        return [x for x in pytree.tree_leaves(call(model, inputs)) if isinstance(x, Tensor)]


def exported(model: nn.Module, inputs: Inputs) -> tuple[list[str], float]:
    """Names of the ops of the exported model and its subgraphs, and how far its outputs are from the model's own."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    program = torch.export.export(model, args, kwargs, strict=False)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    names = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]
    return names, distance(run(model, inputs), run(program.module(), inputs))


def distance(one: list[Tensor], two: list[Tensor]) -> float:
    """Largest difference of any output."""
    assert all(bool(x.isfinite().all()) for x in [*one, *two]), "an output is not finite"
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True) if a.is_floating_point())


def check_task(family: Family, task: Task) -> str:
    """One line about a task: the oracle, and FAILED with a reason if a check speaks against it."""
    model, inputs = family.build(), family.inputs()
    before = run(model, inputs)
    before_live = live_slices(model, inputs)
    marks, _ = task.apply(model, torch.Generator().manual_seed(0))
    zeroed = task(family.build(), torch.Generator().manual_seed(0), 0.3)
    after = run(model, inputs)
    moved = distance(before, after)
    complaints = [] if moved > 1e-4 else ["output did not move"]
    if task.exact:
        complaints += [] if rectangular(marks) else ["what is left is not a box"]
        if not task.fold:
            noisy = distance(after, run(scrambled(model, marks), inputs))
            complaints += [] if noisy < 2e-5 else [f"what is gone matters: {noisy:.1e}"]
        if not task.fold and not task.reader:
            noisy = distance(after, run(scrambled(model, marks, zeroed=True), inputs))
            complaints += [] if noisy < 2e-5 else [f"not separable: {noisy:.1e}"]
        left = dead_left(model, before_live, live_slices(model, inputs), marks)
        complaints += [f"left, but dead: {left}"] if left else []
    text = f"{zeroed.units:6} units{zeroed.params:8} gone, moved {moved:.2f}"
    return text + (f" ({zeroed.note})" if zeroed.note else "") + "".join(f" FAILED {c}" for c in complaints)


def scrambled(model: nn.Module, marks: Marks, zeroed: bool = False) -> nn.Module:
    """A copy in which everything that is gone without having been zeroed is noise: the outputs must not feel it.

    ``zeroed`` turns the sides round: noise in what was zeroed, zeros in the rest. If the outputs do not feel that
    either, nothing but the unit itself joins the two sides: no statistic over all units, for instance.
    """
    names = {param: name for name, param in model.named_parameters()}
    noisy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for param, gone in marks.gone.items():
            zero = marks.zero.get(param, torch.zeros_like(gone))
            target = noisy.get_parameter(names[param])
            target.masked_fill_(gone, 0.0)
            free = zero if zeroed else gone & ~zero
            target.add_(torch.randn(param.shape, generator=generator) * free)
    return forgetful(noisy)


def forgetful(model: nn.Module) -> nn.Module:
    """The model without what it kept from earlier calls: LeViT drops its cache of position biases in training mode."""
    return model.train().eval()


def rectangular(marks: Marks) -> bool:
    """Whether what stays of each parameter is a box, or for stacked experts a box of the same size in each."""
    return all(_stack(~gone) if param in marks.stacked else _box(~gone) for param, gone in marks.gone.items())


def _box(kept: Tensor) -> bool:
    full = torch.ones((), dtype=torch.bool)
    for dim in range(kept.dim()):
        full = full & _any_but(kept, dim).reshape([-1 if d == dim else 1 for d in range(kept.dim())])
    return bool((full == kept).all())


def _stack(kept: Tensor) -> bool:
    return all(_box(part) for part in kept) and len({int(part.sum()) for part in kept}) == 1


class Smooth(TorchFunctionMode):
    """Replaces ReLU and its kin by SiLU: zero at zero as well, but never dead by chance."""

    KINKED = (F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.hardtanh, F.hardswish)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return F.silu(args[0]) if func in self.KINKED else func(*args, **(kwargs or {}))


def live_slices(model: nn.Module, inputs: Inputs) -> dict[str, list[Tensor]]:
    """For each parameter and each of its first three dimensions: which slices have any gradient, on some inputs."""
    model = copy.deepcopy(model)
    live: dict[str, list[Tensor]] = {}
    for seed in range(3):
        with Smooth():
            results = call(forgetful(model), fresh(inputs, seed))
        outputs = [x for x in pytree.tree_leaves(results) if isinstance(x, Tensor)]
        model.zero_grad()
        generator = torch.Generator().manual_seed(seed)
        cotangents = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in outputs]
        torch.autograd.backward(outputs, cotangents)
        for name, param in model.named_parameters():
            grad = torch.zeros_like(param) if param.grad is None else param.grad
            lines = [_any_but(grad != 0, dim) for dim in range(min(grad.dim(), 3))]
            live[name] = [a | b for a, b in zip(live.get(name, lines), lines, strict=True)]
    return live


def fresh(inputs: Inputs, seed: int) -> Inputs:
    """Other inputs of the same kind: noise, random token numbers, the same masks."""
    generator = torch.Generator().manual_seed(seed)

    def renew(x: Tensor) -> Tensor:
        if x.is_floating_point():
            return torch.randn(x.shape, generator=generator)
        return x if x.max() <= 1 else torch.randint(5, 99, x.shape, generator=generator)

    return pytree.tree_map(renew, inputs)


def dead_left(
    model: nn.Module, before: dict[str, list[Tensor]], after: dict[str, list[Tensor]], marks: Marks
) -> dict[str, int]:
    """How many slices of a parameter have lost their gradient and are not counted as gone."""
    left: dict[str, int] = {}
    for name, param in model.named_parameters():
        kept = ~marks.gone.get(param, torch.zeros(param.shape, dtype=torch.bool))
        for dim, (old, new) in enumerate(zip(before[name], after[name], strict=True)):
            number = int((old & ~new & _any_but(kept, dim)).sum())
            if number:
                left[name] = left.get(name, 0) + number
    return left


def _any_but(mask: Tensor, dim: int) -> Tensor:
    """``any`` over all dimensions but one."""
    others = [d for d in range(mask.dim()) if d != dim]
    return mask.any(dim=others) if others else mask
