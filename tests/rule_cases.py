"""The contract of every op rule, one row a use: the operation between a layer that makes units and one that reads them.

``passes`` rows let units through and what is known of them; after ``hides`` rows nothing is known of them, so that
they leave only when nothing reads them; ``fixes`` rows let none leave; ``sound`` rows promise the same function only.
``DECOMPOSED`` names what torch writes as other operations before a rule can see it, ``ABSENT`` what no model on a CPU
can call. A new op rule is one more row.
"""

from __future__ import annotations

import copy
import functools
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers.integrations import moe  # registers transformers::grouped_mm_fallback

from dgating.structure._capture import Captured, capture
from dgating.structure.rules import keeps

assert moe
aten = torch.ops.aten
Units = list[list[int]]
INPUTS = {"rows": (5,), "tokens": (4, 5), "signal": (3, 12), "image": (3, 6, 6), "volume": (3, 4, 4, 4)}


@dataclass(frozen=True, eq=False)
class OpCase:
    """``op(width)`` is a function or a module on activations of ``kind``; ``units`` are the sets that leave together.

    ``expect`` is the name of the function that made the row. ``module``: no size is written into the forward code, so
    that modules with sliced weights follow by themselves.
    """

    name: str
    note: str
    op: Callable[[int], Any]
    kind: str
    width: int
    units: Units
    expect: str
    module: bool

    @property
    def id(self) -> str:
        first = self.name.split()[0]
        return f"{first} ({self.note})" if self.note else first


CASES: list[OpCase] = []


def singles(n: int) -> Units:
    return [[i] for i in range(n)]


def runs(size: int) -> Callable[[int], Units]:
    """Neighbours leave together: the entries of a head, of a normalised group."""
    return lambda n: [list(range(i, i + size)) for i in range(0, n, size)]


def strided(parts: int) -> Callable[[int], Units]:
    """Units at the same place of every one of ``parts`` equal parts leave together."""
    return lambda n: [list(range(i, n, n // parts)) for i in range(n // parts)]


def passes(name, op, kind="tokens", *, note="", width=6, units=singles, module=True):
    """Units that are zero leave; ``op`` is a function of the activation, or ``Made`` once the width is known."""
    CASES.append(OpCase(name, note, _factory(op), kind, width, units(width), "passes", module))


def hides(name, op, kind="tokens", *, note="", width=6, units=singles, module=True):
    """Units leave when nothing reads them, whatever they are."""
    CASES.append(OpCase(name, note, _factory(op), kind, width, units(width), "hides", module))


def fixes(name, op, kind="tokens", *, note="over the units", width=6, module=True):
    """Nothing leaves."""
    CASES.append(OpCase(name, note, _factory(op), kind, width, singles(width), "fixes", module))


def sound(name, op, kind="tokens", *, note="", width=6, module=True):
    """Whatever leaves, the function is the same."""
    CASES.append(OpCase(name, note, _factory(op), kind, width, singles(width), "sound", module))


def _factory(op: Any) -> Callable[[int], Any]:
    return op.make if isinstance(op, Made) else lambda n: op


class Made:
    """Makes the operation once the width is known."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make


class Once:
    """The export of a model, made once: plans and compactions for many weights, and for both targets, take copies.

    ``capture`` stands in for the engine's own. The export is by far the slowest step of a compaction.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, Any], shapes: Any = None) -> None:
        self.model, self.inputs, self.shapes = model, inputs, shapes
        self.first: Captured | None = None
        self.decomposed = False  # whether the export had operations that torch took apart

    @property
    def exported(self) -> Captured:
        if self.first is None:
            taken_apart = ExportedProgram.run_decompositions

            def noted(program: ExportedProgram, *args: Any, **kwargs: Any) -> ExportedProgram:
                self.decomposed = True
                return taken_apart(program, *args, **kwargs)

            with patch.object(ExportedProgram, "run_decompositions", noted):
                self.first = capture(self.model, *self.inputs, keeps, self.shapes)
        return self.first

    def capture(self, model: nn.Module, args: Any, kwargs: Any, keep: Any, dynamic_shapes: Any = None) -> Captured:
        if model is not self.model:
            return capture(model, args, kwargs, keep, dynamic_shapes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own
            program = copy.deepcopy(self.exported.program)  # compaction writes into the graph
        nodes = {n.name: n for n in program.graph.nodes}
        weights = {nodes[n.name]: w for n, w in self.exported.weights.items()}
        return Captured(program, weights, tuple(nodes[n.name] for n in self.exported.outputs))


class Apply(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def as_module(op: Any) -> nn.Module:
    return op if isinstance(op, nn.Module) else Apply(op)


class With(nn.Module):
    """A function of the activation and of parameters."""

    def __init__(self, f: Callable[..., Tensor], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.f = f
        self.p = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x, *self.p)


class Branch(nn.Module):
    """Producer, operation, consumer."""

    def __init__(self, case: OpCase) -> None:
        super().__init__()
        n = case.width
        kinds = {"signal": nn.Conv1d, "image": nn.Conv2d, "volume": nn.Conv3d}
        self.kind = case.kind
        if case.kind == "ids":
            self.a: nn.Module = nn.Embedding(7, n)
        else:
            self.a = kinds[case.kind](3, n, 1) if case.kind in kinds else nn.Linear(5, n)
        self.op = as_module(case.op(n))
        self.double()
        with torch.no_grad():
            y = self.op.eval()(self.a(self.example()))
        by_channel = case.kind in kinds and y.ndim == len(INPUTS[case.kind]) + 1
        self.b = kinds[case.kind](y.shape[1], 2, 1) if by_channel else nn.Linear(y.shape[-1], 2)
        self.double()

    def example(self) -> Tensor:
        if self.kind == "ids":
            return torch.randint(0, 7, (3, 4))
        return torch.randn(3, *INPUTS[self.kind], dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.op(self.a(x)))


def floating(x: Tensor) -> Tensor:
    return x.double()


# --- movement ---


def moved_around(x: Tensor) -> Tensor:
    x = x.mT.relu().mT.mH.adjoint().moveaxis(-1, 0).moveaxis(0, -1).swapaxes(1, 2).swapdims(1, 2)
    return x.movedim((0, 2), (2, 1)).tanh().movedim((2, 1), (0, 2))


passes("view", lambda x: x.view(x.shape[0], -1), note="merged with the tokens")
hides("view", lambda x: x.view(*x.shape[:2], -1, 2).sum(-1).square(), note="heads", units=runs(2))
passes("view", lambda x: x.view(*x.shape[:2], 2, -1), note="width of heads", units=strided(2))
passes("reshape", lambda x: x.reshape(-1, x.shape[-1]))
passes("_unsafe_view", lambda x: aten._unsafe_view(x, [12, 6]), module=False)
passes("_reshape_copy", lambda x: aten._reshape_copy(x, [12, 6]), module=False)
passes("_reshape_alias", lambda x: aten._reshape_alias(x, [12, 6], [6, 1]), module=False)
passes("flatten", lambda x: x.flatten(1))
passes("unflatten", lambda x: x.unflatten(-1, (2, -1)), units=strided(2))
hides("unflatten", lambda x: x.unflatten(-1, (3, 2)).amax(-1), note="heads", units=runs(2), module=False)
passes("squeeze", lambda x: x.unsqueeze(1).relu().squeeze(1))
passes("unsqueeze", lambda x: x.unsqueeze(-1).relu().flatten(-2))
passes("permute", lambda x: x.permute(2, 0, 1).relu().permute(1, 2, 0))
passes("transpose", lambda x: x.transpose(1, 2).relu().transpose(-1, -2))
passes(
    "t numpy_T matrix_H", lambda x: aten.matrix_H(aten.matrix_H(aten.numpy_T(aten.numpy_T(x.t().t()).relu()))), "rows"
)
passes("mT mH adjoint swapaxes swapdims moveaxis movedim", moved_around)
passes(
    "atleast_1d atleast_2d atleast_3d view_as reshape_as ravel",
    lambda x: torch.atleast_3d(torch.atleast_1d(torch.atleast_2d(x).relu())).view_as(x).reshape_as(x).ravel(),
)
passes("slice", lambda x: x[..., 1:-1], units=lambda n: singles(n)[1:-1])
passes("slice", lambda x: torch.cat([x[..., :4], x[..., 2:], x[..., -3:]], -1), note="overlapping", module=False)
passes("slice", lambda x: x[:, ::2], note="every other token")
sound("slice", lambda x: torch.cat([x, x[..., ::2]], -1), note="every other unit")
passes("narrow", lambda x: aten.narrow(x, 1, 1, 2))
passes("narrow", lambda x: torch.cat([aten.narrow(x, -1, 2, 3), x], -1), note="units", module=False)
passes("select", lambda x: x.select(1, -1))
passes("select", lambda x: torch.cat([x, x.select(-1, -2).unsqueeze(-1)], -1), note="of a unit", module=False,
       units=lambda n: [[i] for i in range(n) if i != n - 2])  # fmt: skip
passes("split", lambda x: torch.cat(x.split(4, -1)[::-1], -1), module=False)
passes("split", lambda x: sum(x.split(3, -1)), note="equal parts", units=strided(2), module=False)
passes("split_with_sizes", lambda x: torch.cat(x.split([1, 2, 3], -1)[::-1], -1), module=False,
       units=lambda n: [[1], [3], [4]])  # fmt: skip
passes("chunk", lambda x: x.chunk(2, -1)[0] + x.chunk(2, -1)[1].tanh(), units=strided(2))
passes("chunk", lambda x: torch.cat(x.chunk(2, -1)[::-1], -1), note="uneven", module=False)
passes("unsafe_chunk", lambda x: sum(x.unsafe_chunk(2, -1)), units=strided(2))
passes("unsafe_split", lambda x: torch.cat(x.unsafe_split(4, -1)[::-1], -1), module=False)
passes("unsafe_split_with_sizes", lambda x: torch.cat(x.unsafe_split_with_sizes([2, 4], -1)[::-1], -1), module=False)
passes("tensor_split", lambda x: torch.cat(x.tensor_split(3, -1)[::-1], -1), module=False)
passes("tensor_split", lambda x: torch.cat(x.tensor_split((2, 5), -1)[::-1], -1), note="at indices", module=False,
       units=lambda n: [[0], [2], [3]])  # fmt: skip
passes("unbind", lambda x: sum(x.unbind(1)))
fixes("unbind", lambda x: torch.stack(x.unbind(-1), -1))
passes("roll", lambda x: x.roll(1, 1))
fixes("roll", lambda x: x.roll(1, -1))
fixes("roll", lambda x: x.roll(1), note="over everything")
passes("flip", lambda x: x.flip(1))
fixes("flip", lambda x: x.flip(-1))
passes("cat", lambda x: torch.cat([x, x.relu()], -1))
passes("cat", lambda x: torch.cat([x, x.relu()], 1), note="along the tokens")
passes("concat concatenate", lambda x: torch.concatenate([x, torch.concat([x, x.relu()], -1)], -1))
passes("stack", lambda x: torch.stack([x, x.relu()], -1).flatten(-2))
passes("stack", lambda x: torch.stack([x, x.relu()], 1), note="in front")


def written(shape: Callable[[Tensor], tuple[int, ...]], *parts: tuple[Any, Callable[[Tensor], Any]],
            new: str = "new_empty") -> Callable[[Tensor], Tensor]:  # fmt: skip
    """A new tensor (``"clone"``: a copy) into whose parts the forward writes."""

    def run(x: Tensor) -> Tensor:
        h = x.clone() if new == "clone" else getattr(x, new)(*shape(x))
        for place, what in parts:
            h[place] = what(x)
        return h.flatten(2)

    return run


def twice(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], 2 * x.shape[2])


def by_head(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], -1, 2)


def beside(x: Tensor) -> Tensor:
    """Two activations side by side."""
    n = x.shape[-1]
    return written(twice, ((..., slice(n)), Tensor.tanh), ((..., slice(n, None)), Tensor.relu))(x)


def wider_heads(x: Tensor) -> tuple[int, ...]:
    return (*x.shape[:2], x.shape[2] // 2, 4)


passes("slice_scatter", beside, note="all of it")
passes("slice_scatter", lambda x: written(twice, ((..., slice(x.shape[-1], None)), Tensor.relu), new="new_zeros")(x),
       note="the rest zero", module=False)  # fmt: skip
passes("slice_scatter", lambda x: torch.slice_scatter(x, x[..., 3:].tanh(), -1, 0, 3), note="over units", module=False,
       units=strided(2))  # fmt: skip
passes("slice_scatter", written(wider_heads, ((..., slice(2)), by_head), ((..., slice(2, 4)), lambda x: -by_head(x))),
       note="heads", units=runs(2))  # fmt: skip
passes("slice_scatter", written(twice, ((slice(None), slice(0, None, 2)), lambda x: x[:, 1::2]), new="clone"),
       note="every other token")  # fmt: skip
sound("slice_scatter", written(twice, ((..., slice(0, None, 2)), lambda x: x[..., 1::2].tanh()), new="clone"),
      note="every other unit", module=False)  # fmt: skip
hides("slice_scatter", written(twice, ((slice(None), slice(2, None)), lambda x: 0.5), new="clone"), note="a number")
passes("select_scatter", written(lambda x: (*x.shape[:2], 2, x.shape[2]), ((..., 0, slice(None)), Tensor.tanh),
                                 ((..., -1, slice(None)), Tensor.relu)), note="side by side")  # fmt: skip
passes("select_scatter", written(twice, ((slice(None), -2), lambda x: x[:, 0].tanh()), new="clone"), note="a token")
passes("select_scatter", written(twice, ((..., -2), lambda x: 1.0), new="clone"), note="a unit", module=False,
       units=lambda n: [[i] for i in range(n) if i != n - 2])  # fmt: skip
passes("expand", lambda x: x.unsqueeze(1).expand(-1, 2, -1, -1))
passes("expand", lambda x: x.unsqueeze(-1).expand(-1, -1, -1, 2).flatten(-2), note="copies of units", module=False)
passes("expand_as broadcast_to", lambda x: torch.broadcast_to(x.sum(1, keepdim=True).expand_as(x), x.shape))
passes("repeat", lambda x: x.repeat(1, 1, 2), module=False)
passes("repeat", lambda x: x.repeat(2, 1, 1, 1), note="in front")
passes("tile", lambda x: x.tile((2,)), module=False)
passes("repeat_interleave", lambda x: x.repeat_interleave(2, -1), module=False)
passes("repeat_interleave", lambda x: x.repeat_interleave(2, 1), note="tokens")
passes("pixel_shuffle", lambda x: F.pixel_shuffle(x, 2), "image", width=8, units=runs(4))
passes("pixel_unshuffle", lambda x: F.pixel_unshuffle(x, 2), "image")
passes("channel_shuffle", lambda x: F.channel_shuffle(x, 2), "image", units=strided(2))
passes("native_channel_shuffle", lambda x: aten.native_channel_shuffle(x, 2), "image", units=strided(2))


# --- attention ---


def attention(**options: Any) -> Callable[[Tensor], Tensor]:
    """Queries, keys and values of heads of width two, all from one activation."""

    def run(x: Tensor) -> Tensor:
        v = x.view(*x.shape[:2], -1, 2).transpose(1, 2)
        y = F.scaled_dot_product_attention(v.flip(2), v.tanh(), v, **options)
        return y.transpose(1, 2).flatten(2)

    return run


def flash(x: Tensor) -> Tensor:
    v = x.view(*x.shape[:2], -1, 2).transpose(1, 2)
    return aten._scaled_dot_product_flash_attention_for_cpu(v.flip(2), v, v)[0].transpose(1, 2).flatten(2)


def grouped_queries(x: Tensor) -> Tensor:
    """Two query heads for every key-value head; the query heads are copies."""
    v = x.view(*x.shape[:2], -1, 2).transpose(1, 2)
    q = v.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, v, v, enable_gqa=True).transpose(1, 2).flatten(2)


passes("scaled_dot_product_attention", attention(), units=runs(2))
passes("scaled_dot_product_attention", attention(is_causal=True), note="causal", units=runs(2))
passes("scaled_dot_product_attention", Made(lambda n: With(lambda x, m: attention(attn_mask=m)(x), (4, 4))),
       note="mask", units=runs(2))  # fmt: skip
passes("scaled_dot_product_attention", grouped_queries, note="grouped queries", units=runs(2))
passes("_scaled_dot_product_flash_attention_for_cpu", flash, units=runs(2))

# --- indexing ---

passes("embedding", lambda x: x, "ids")
fixes("embedding", Made(lambda n: With(lambda x, w: F.embedding(x.detach().abs().long().clamp(0, 2), w).flatten(-2),
                                       (3, 1))), note="addressed by the units")  # fmt: skip
passes("index", lambda x: x[:, [2, 0, 0]])
passes("index", lambda x: x[[[0, 1], [1, 0]], [[2, 0], [1, 1]]], note="two axes")
passes("index", lambda x: x[..., [2, 0, 0, 1]], note="a list of units", units=lambda n: singles(3), module=False)
fixes("index", lambda x: x[..., (x[0, 0] > 9).long()])
passes("_unsafe_index", lambda x: aten._unsafe_index(x, [None, torch.tensor([2, 0])]))
sound("_unsafe_index", lambda x: aten._unsafe_index(x, [None, None, torch.tensor([2, 0])]), note="units", module=False)
passes("index_select", lambda x: x.index_select(1, torch.tensor([2, 0, 0])))
fixes("index_select", lambda x: x.index_select(-1, torch.tensor([2, 0, 0])))
hides("gather", lambda x: x.gather(1, torch.zeros(3, 2, 6, dtype=torch.long)), note="tokens", module=False)
fixes("gather", lambda x: x.gather(-1, torch.tensor([[[2, 0, 0]]]).expand(3, 4, 3)))
fixes("take_along_dim", lambda x: x.take_along_dim(torch.tensor([[[2, 0, 0]]]), -1))
fixes("one_hot", lambda x: F.one_hot((x > 0).long(), 2).flatten(-2).to(x), note="of the units")
fixes("histc", lambda x: torch.histc(x, 4), note="of the units")
fixes("searchsorted", lambda x: torch.searchsorted(torch.tensor([-0.5, 0.5]).to(x), x).to(x), note="of the units")
fixes("searchsorted", lambda x: torch.searchsorted(x.cumsum(1).mT.contiguous(), torch.zeros(3, 6, 2).to(x)).to(x).mT,
      note="in the units")  # fmt: skip
fixes("bucketize", lambda x: torch.bucketize(x, torch.tensor([-0.5, 0.5]).to(x)).to(x), note="of the units")
fixes("diff", lambda x: aten.diff(x))
passes("tril", lambda x: x.tril(), "image")
passes("triu", lambda x: x.triu(1), "image")
fixes("tril", lambda x: x.tril())
fixes("triu", lambda x: x.triu())

# --- products ---


def conv1d_of_transformers(n: int) -> nn.Module:
    return With(lambda x, w, b: torch.addmm(b, x, w), (n, 4), (4,))


passes("linear", lambda x: x)
passes("linear", Made(lambda n: nn.Linear(n, 4)), "rows", note="twice")
passes("linear", lambda x: F.linear(x, x.relu()), "rows", note="of two activations")
passes("linear", Made(lambda n: With(lambda x, w, b: F.linear(x, w, b * x.sum()), (4, n), (4,))), note="computed bias")
passes("addmm", Made(conv1d_of_transformers), "rows")
passes("addmm", lambda x: torch.addmm(torch.ones(3, 3).to(x), x, x.t(), beta=2, alpha=0.5), "rows", note="activations")
passes("matmul", Made(lambda n: With(lambda x, w: x @ w, (n, 4))))
passes("matmul", Made(lambda n: With(lambda x, w: (w @ x.mT).mT, (4, n))), note="from the left")
passes("matmul", lambda x: x @ x.mT.tanh(), note="contracted")
fixes("matmul", lambda x: x.mT @ x.tanh(), note="outer")
fixes("matmul", Made(lambda n: With(lambda x, w: x @ w, (n,))), note="with a vector")
passes("mm", Made(lambda n: With(lambda x, w: torch.mm(x, w), (n, 4))), "rows")
passes("bmm", Made(lambda n: With(lambda x, w: torch.bmm(x, w), (3, n, 4))), note="one matrix a row")
fixes("mv", Made(lambda n: With(lambda x, w: torch.mv(x, w), (n,))), "rows")
fixes("dot", Made(lambda n: With(lambda x, w: torch.dot(x[0, 0], w).view(1), (n,))))
passes("inner", Made(lambda n: With(lambda x, w: torch.inner(x, w), (4, n))))
passes("inner", Made(lambda n: With(lambda x, w: torch.inner(x, w), (n, n))), note="square")
passes("linalg_matmul", lambda x: torch.linalg.matmul(x, x.mT))
passes("baddbmm", lambda x: torch.baddbmm(torch.ones(3, 4, 4).to(x), x, x.mT, beta=2, alpha=3))
passes("baddbmm", Made(lambda n: With(lambda x, w, b: torch.baddbmm(b, x, w), (3, n, 4), (3, 1, 4))), note="weights")


def experts(x: Tensor, w: Tensor) -> Tensor:
    """Rows sorted by expert: three, four and five of them."""
    ends = torch.tensor([3, 7, 12], dtype=torch.int32)
    return torch.ops.transformers.grouped_mm_fallback(x.flatten(0, 1), w, ends)


sound("transformers::grouped_mm_fallback", Made(lambda n: With(experts, (3, n, 4))))


def batched(x: Tensor, up: Tensor, down: Tensor, bias: Tensor, router: Tensor) -> Tensor:
    """A matrix a row: the one of its expert, stored either way round."""
    x = x.flatten(0, 1)
    chosen = (x @ router).argmax(-1)
    h = torch.bmm(up[chosen], x.unsqueeze(-1)).squeeze(-1) + bias[chosen]
    return torch.bmm(h.relu().unsqueeze(1), down[chosen]).squeeze(1)


sound("index", Made(lambda n: With(batched, (3, 5, n), (3, 5, 4), (3, 5), (n, 3))), note="experts")

# --- convolutions ---


def conv(kind: type[nn.Module], size: int, **options: Any) -> Made:
    return Made(lambda n: kind(n, size, **{"kernel_size": 2, **options}))


for dims, shape in ((1, "signal"), (2, "image"), (3, "volume")):
    passes(f"conv{dims}d", conv(getattr(nn, f"Conv{dims}d"), 4), shape)
    passes(f"conv_transpose{dims}d", conv(getattr(nn, f"ConvTranspose{dims}d"), 4, stride=2), shape)
passes("conv2d", conv(nn.Conv2d, 4, padding=1, bias=False), "image", note="padded")
passes("conv1d", conv(nn.Conv1d, 6, groups=2), "signal", note="grouped", units=strided(2))
passes("conv2d", conv(nn.Conv2d, 12, groups=6, padding=1), "image", note="depthwise")
passes("conv_transpose2d", conv(nn.ConvTranspose2d, 4, groups=2, stride=2), "image", note="grouped", units=strided(2))
passes("conv_transpose1d", conv(nn.ConvTranspose1d, 12, groups=6), "signal", note="depthwise")
passes("conv2d", conv(nn.Conv2d, 4, padding=1, padding_mode="reflect"), "image", note="reflected border")
passes("conv2d", conv(nn.Conv2d, 4, kernel_size=3, padding="same"), "image", note="same")
passes("conv2d", Made(lambda n: With(lambda x, w, b: F.conv2d(x, w, b * x.sum()), (4, n, 2, 2), (4,))), "image",
       note="computed bias")  # fmt: skip
fixes("conv2d", Made(lambda n: With(lambda x, w: F.conv2d(x, w * x.sum()), (4, n, 2, 2))), "image",
      note="computed weight")  # fmt: skip
passes("convolution", Made(lambda n: With(lambda x, w, b: aten.convolution(x, w, b, [1], [0], [1], False, [0], 1),
                                          (4, n, 2), (4,))), "signal")  # fmt: skip
passes("convolution", Made(lambda n: With(lambda x, w, b: aten.convolution(x, w, b, [1], [0], [1], True, [0], 1),
                                          (n, 4, 2), (4,))), "signal", note="transposed")  # fmt: skip
passes("_convolution", Made(lambda n: With(
    lambda x, w, b: aten._convolution(x, w, b, [1], [0], [1], False, [0], 1, False, False, True, True),
    (4, n, 2), (4,))), "signal")  # fmt: skip

# --- creation ---


def scaled_by_a_number(x: Tensor) -> Tensor:
    n = x.amax().abs().long().item()
    torch._check(n >= 0)
    torch._check(n < 1000)
    return x * n


passes("arange", lambda x: x * torch.arange(x.shape[1]).to(x).unsqueeze(-1))
fixes("arange", lambda x: x + torch.arange(x.shape[-1]).to(x))
passes("eye", lambda x: torch.eye(x.shape[1]).to(x) @ x)
fixes("eye", lambda x: x @ torch.eye(x.shape[-1]).to(x), note="across the units")
passes("linspace", lambda x: x * torch.linspace(0, 1, 4).to(x).unsqueeze(-1))
fixes("linspace", lambda x: x * torch.linspace(0, 1, 6).to(x))
passes("logspace", lambda x: x * torch.logspace(0, 1, 4).to(x).unsqueeze(-1))
passes("scalar_tensor", lambda x: x * torch.scalar_tensor(2.0).to(x))
passes("rand", lambda x: x + 0 * torch.rand(4, 1).to(x))
fixes("rand", lambda x: x * torch.rand(6).to(x).clamp(2, 2))
passes("randn", lambda x: x + 0 * torch.randn(4, 1).to(x))
passes("randint", lambda x: x + 0 * torch.randint(0, 5, (4, 1)).to(x))
passes("tril_indices", lambda x: x[:, torch.tril_indices(4, 4)[1]])
passes("triu_indices", lambda x: x[:, torch.triu_indices(4, 4)[1]])
passes("randperm", lambda x: x + 0 * torch.randperm(4).unsqueeze(-1).to(x))
for made in (
    lambda x: torch.full((x.shape[-1],), 0.5).to(x),
    lambda x: torch.zeros(x.shape[-1]).to(x),
    lambda x: torch.ones(x.shape[-1]).to(x),
    lambda x: torch.empty(x.shape[-1]).fill_(0.5).to(x),
    lambda x: x.new_zeros(x.shape[-1]),
    lambda x: x.new_ones(x.shape[-1]),
    lambda x: x.new_full((x.shape[-1],), 0.5),
    lambda x: x.new_empty(x.shape[-1]).fill_(0.5),
    lambda x: torch.full_like(x, 0.5),
    lambda x: torch.zeros_like(x),
    lambda x: torch.ones_like(x),
    lambda x: 0 * torch.empty_like(x).isnan(),
    lambda x: 0 * torch.rand_like(x),
    lambda x: 0 * torch.randn_like(x),
):
    name = next(
        w
        for w in made.__code__.co_names
        if w.split("_")[0] in ("full", "zeros", "ones", "empty", "new", "rand", "randn")
    )
    passes(name, lambda x, f=made: x * (1 + f(x)))
fixes("new_empty_strided", lambda x: x * (1 + 0 * x.new_empty_strided((6,), (1,)).isnan()))
fixes("empty_strided", lambda x: x * (1 + 0 * torch.empty_strided((6,), (1,)).isnan()))
fixes("empty_permuted", lambda x: x * (1 + 0 * torch.empty_permuted((6,), (0,)).isnan()))
passes("_assert_tensor_metadata", lambda x: (aten._assert_tensor_metadata(x, dtype=x.dtype), x)[1])
passes("sym_size", lambda x: x.reshape(x.shape[0] * x.shape[1], -1)[: x.shape[0] * 2])
fixes("item _assert_scalar", scaled_by_a_number, note="of the units")

# --- elementwise ---


def no_dropout(x: Tensor) -> Tensor:
    x = torch.feature_dropout(F.dropout(x, 0.5, False), 0.5, False)
    x = F.feature_alpha_dropout(F.alpha_dropout(x, 0.5, False), 0.5, False)
    return torch.native_dropout(x, 0.5, False)[0]


passes("relu", lambda x: x.relu())
passes("hardswish", F.hardswish)
passes("_prelu_kernel", Made(lambda n: nn.PReLU(n)), "image")
passes("_prelu_kernel", Made(lambda n: nn.PReLU()), note="one slope")
passes("log_sigmoid", F.logsigmoid)
hides("copy", lambda x: aten.copy(torch.zeros_like(x), x))
passes("copy", lambda x: aten.copy(torch.zeros_like(x), x.tanh()), note="what is written")
passes("rrelu", F.rrelu)
passes("mul", lambda x: x * x.tanh())
passes("mul", Made(lambda n: With(lambda x, w: x * w, (n,))), note="scale")
passes("multiply", lambda x: torch.multiply(x, 2.0))


class Branched(nn.Module):
    """A residual branch whose scale is zero in the first half of the stream, or all over."""

    def __init__(self, n: int, scale: Tensor, order: Callable[[Tensor], Tensor] = Tensor.clone) -> None:
        super().__init__()
        self.up, self.down, self.order = nn.Linear(n, n), nn.Linear(n, n), order
        self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() + self.order(self.down(self.up(x).relu())) * self.scale.tanh()


def turned(x: Tensor) -> Tensor:
    """Views and permutations between a layer and its scale."""
    return x.mT.unflatten(1, (-1, 2)).relu().permute(0, 3, 1, 2).flatten(2)


for scale in ([0.0, 1.0, 0.0, 0.0, -1.0, 2.0], [0.0]):
    sound("mul", Made(lambda n, s=scale: Branched(n, torch.tensor(s))), note=f"hidden by {len(scale)} factors")
sound("mul", Made(lambda n: Branched(n, torch.tensor([0.0]), turned)), note="hidden behind views", module=False)
passes("where", lambda x: torch.where(x > 0, x, 0.1 * x))
passes("where", Made(lambda n: With(lambda x, w: torch.where(w > 0, x, 0 * x), (n,))), note="parameter")
passes("masked_fill", lambda x: x.masked_fill(x > 0.3, 0.0))
passes("masked_fill", lambda x: x.masked_fill(torch.tensor([False, True, False, False])[:, None], 0.0), note="tokens")
passes("to", lambda x: x.to(torch.float32).to(torch.float64))
passes(
    "alias detach detach_ clone contiguous lift_fresh lift_fresh_copy positive",
    lambda x: aten.lift_fresh_copy(
        aten.lift_fresh(torch.positive(aten.alias(x).detach()).clone().detach_().mT.contiguous().mT)
    ),
)
passes("_to_copy type_as", lambda x: aten._to_copy(x, dtype=torch.float32).type_as(torch.ones(2).double()))
passes("dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout", no_dropout)
passes("glu", lambda x: F.glu(x), units=strided(2))
passes("glu", lambda x: F.glu(x, 1), note="tokens")

POINTWISE = {
    "add": lambda x: x + 0.5,
    "sub": lambda x: 0.5 - x,
    "div": lambda x: x / 3,
    "neg": lambda x: -x,
    "abs": torch.abs,
    "exp": torch.exp,
    "log1p": lambda x: torch.log1p(x.abs()),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "selu": F.selu,
    "celu": F.celu,
    "mish": F.mish,
    "softplus": F.softplus,
    "softshrink": F.softshrink,
    "hardtanh": F.hardtanh,
    "hardsigmoid": F.hardsigmoid,
    "leaky_relu": F.leaky_relu,
    "threshold": lambda x: F.threshold(x, 0.1, 0.7),
    "pow": lambda x: x**2,
    "sqrt": lambda x: (x * x).sqrt(),
    "rsqrt": lambda x: (x * x + 1).rsqrt(),
    "reciprocal": lambda x: (x * x + 1).reciprocal(),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_min": lambda x: x.clamp_min(0.1),
    "maximum": lambda x: torch.maximum(x, x.tanh()),
    "minimum": lambda x: torch.minimum(x, torch.full_like(x, 0.2)),
    "atan2": lambda x: torch.atan2(x, x.abs() + 1),
    "lerp": lambda x: torch.lerp(x, x.relu(), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.relu(), value=0.5),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.5),
    "sin": torch.sin,
    "erf": torch.erf,
    "floor": torch.floor,
    "round": torch.round,
    "sign": torch.sign,
    "fmod": lambda x: torch.fmod(x, 0.7),
    "remainder": lambda x: torch.remainder(x, 0.7),
    "nan_to_num": torch.nan_to_num,
    "logaddexp": lambda x: torch.logaddexp(x, x.relu()),
    "xlogy": lambda x: torch.xlogy(x, x.abs() + 1),
    "heaviside": lambda x: torch.heaviside(x, torch.full_like(x, 0.3)),
    "hypot": lambda x: torch.hypot(x, x.relu()),
    "frac": torch.frac,
    "log": lambda x: x.log().clamp(-1, 1).nan_to_num(),
    "isfinite": lambda x: x.isfinite().double() * x,
}
NAMES = list(POINTWISE)
for start in range(0, len(NAMES), 6):
    some = NAMES[start : start + 6]
    passes(" ".join(some), lambda x, some=some: sum(POINTWISE[name](x) for name in some), note="and other pointwise")
fixes("frexp", lambda x: torch.frexp(x)[0], note="two results")
hides("bitwise_not", lambda x: (~(x > 0)).double(), note="pointwise")
hides("logical_and", lambda x: torch.logical_and(x > 0, x < 1).double(), note="pointwise")
hides("__and__", lambda x: ((x > 0) & (x < 1)).double())
hides("__or__", lambda x: ((x > 0) | (x < -1)).double())
hides("__xor__", lambda x: ((x > 0) ^ (x < 1)).double())
hides("gt", lambda x: (x > 0.2).double(), note="pointwise")

# --- normalisation ---


def normalised(op: Any) -> Made:
    """A norm over the channels, called as an operator with its statistics."""
    return Made(lambda n: Statistics(op, n))


class Statistics(nn.Module):
    def __init__(self, op: Callable[..., Tensor], n: int) -> None:
        super().__init__()
        self.op = op
        self.weight, self.bias = nn.Parameter(torch.randn(n)), nn.Parameter(torch.randn(n))
        self.register_buffer("mean", torch.randn(n))
        self.register_buffer("var", torch.rand(n) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, self.weight, self.bias, self.mean, self.var)


def batch_norm(n: int, dims: int = 2, **options: Any) -> nn.Module:
    norm = getattr(nn, f"BatchNorm{dims}d")(n, **options)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return norm


fixes("layer_norm", Made(lambda n: nn.LayerNorm(n)))
fixes("native_layer_norm", lambda x: aten.native_layer_norm(x, [6], None, None, 1e-5)[0])
hides("layer_norm", lambda x: F.layer_norm(x, x.shape[2:]), "image", note="over the pixels")
fixes("rms_norm", Made(lambda n: nn.RMSNorm(n)))
fixes("_fused_rms_norm", lambda x: aten._fused_rms_norm(x, [6], None, 1e-5)[0])
passes("batch_norm", Made(batch_norm), "image")
passes("batch_norm", Made(lambda n: batch_norm(n, affine=False)), "image", note="no scale")
passes(
    "_native_batch_norm_legit", Made(lambda n: batch_norm(n, track_running_stats=False)), "image", note="of the batch"
)
passes("batch_norm", Made(lambda n: batch_norm(n, 1)), "rows", note="rows")
sound("batch_norm", normalised(lambda x, w, b, m, v: F.batch_norm(x, m, v, w * x.sum(), b * x.sum())), "image",
       note="computed scale")  # fmt: skip
passes(
    "_native_batch_norm_legit_no_training",
    normalised(lambda x, w, b, m, v: aten._native_batch_norm_legit_no_training(x, w, b, m, v, 0.1, 1e-5)[0]),
    "image",
)
passes(
    "_native_batch_norm_legit",
    normalised(lambda x, w, b, m, v: aten._native_batch_norm_legit.no_stats(x, w, b, True, 0.1, 1e-5)[0]),
    "image",
)
passes(
    "native_batch_norm",
    normalised(lambda x, w, b, m, v: aten.native_batch_norm(x, w, b, m, v, False, 0.1, 1e-5)[0]),
    "image",
)
passes(
    "_batch_norm_no_update",
    normalised(lambda x, w, b, m, v: aten._batch_norm_no_update(x, w, b, m, v, 0.1, 1e-5)[0]),
    "image",
)
passes("instance_norm", Made(lambda n: nn.InstanceNorm2d(n, affine=True)), "image")
passes("instance_norm", Made(lambda n: nn.InstanceNorm2d(n)), "image", note="no scale")
passes("instance_norm", Made(lambda n: nn.InstanceNorm1d(n, track_running_stats=True)), "signal", note="statistics")
passes("group_norm", Made(lambda n: nn.GroupNorm(3, n)), "image", units=runs(2))
sound("group_norm", normalised(lambda x, w, b, m, v: F.group_norm(x, 3, w * x.sum(), b * x.sum())), "image",
      note="computed scale", module=False)  # fmt: skip
fixes("group_norm", Made(lambda n: nn.GroupNorm(1, n)), "image", note="one group")
passes("native_group_norm", lambda x: aten.native_group_norm(x, None, None, 3, 6, 36, 3, 1e-5)[0], "image",
       units=runs(2), module=False)  # fmt: skip

# --- pooling and padding ---

SHAPES = {1: "signal", 2: "image", 3: "volume"}


def pools(d: int) -> Callable[[Tensor], Tensor]:
    """Every kind of pooling of one input, all to the same size."""

    def run(x: Tensor) -> Tensor:
        size = [2] * d
        y = getattr(F, f"max_pool{d}d")(x, 3, 2, padding=1) + getattr(F, f"avg_pool{d}d")(x, 2)
        y = getattr(F, f"adaptive_avg_pool{d}d")(y, size) + getattr(F, f"adaptive_max_pool{d}d")(y, size)
        return y + getattr(aten, f"max_pool{d}d_with_indices")(y, [3] * d, [1] * d, [1] * d)[0]

    return run


for d, shape in SHAPES.items():
    passes(
        f"max_pool{d}d avg_pool{d}d adaptive_avg_pool{d}d adaptive_max_pool{d}d max_pool{d}d_with_indices",
        pools(d),
        shape,
    )
    passes(
        f"upsample_nearest{d}d _upsample_nearest_exact{d}d",
        lambda x: F.interpolate(x, scale_factor=2) + F.interpolate(x, scale_factor=2, mode="nearest-exact"),
        shape,
    )
    passes(
        f"reflection_pad{d}d replication_pad{d}d",
        lambda x, d=d: F.pad(x, (1,) * 2 * d, mode="reflect") + F.pad(x, (1,) * 2 * d, mode="replicate"),
        shape,
    )
passes("avg_pool2d", lambda x: F.avg_pool2d(x, 2, padding=1), "image", note="padded")
passes("avg_pool2d", lambda x: F.avg_pool2d(x, 2, divisor_override=3), "image", note="other divisor")
passes(
    "avg_pool2d", lambda x: F.avg_pool2d(x, 4, ceil_mode=True, count_include_pad=False, padding=1), "image", note="ceil"
)
passes("_adaptive_avg_pool2d", lambda x: aten._adaptive_avg_pool2d(x, [2, 2]), "image")
passes("_adaptive_avg_pool3d", lambda x: aten._adaptive_avg_pool3d(x, [2, 2, 2]), "volume")
passes("upsample_linear1d", lambda x: F.interpolate(x, scale_factor=2, mode="linear"), "signal")
passes("upsample_bilinear2d", lambda x: F.interpolate(x, size=5, mode="bilinear", align_corners=True), "image")
passes("upsample_bicubic2d", lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), "image")
passes("upsample_trilinear3d", lambda x: F.interpolate(x, scale_factor=2, mode="trilinear"), "volume")
passes("_upsample_bilinear2d_aa", lambda x: F.interpolate(x, size=3, mode="bilinear", antialias=True), "image")
passes("_upsample_bicubic2d_aa", lambda x: F.interpolate(x, size=3, mode="bicubic", antialias=True), "image")
hides("constant_pad_nd", lambda x: aten.constant_pad_nd(x, [1, 1], 0.5), "image")
passes("pad", lambda x: F.pad(x, (1, 1, 0, 1)), "image")
hides("pad", lambda x: F.pad(x, (1, 1), value=0.5), "image", note="other value")
passes("pad", lambda x: F.pad(x, (0, 0, 1, 0)), note="tokens")
fixes("pad", lambda x: F.pad(x, (1, 1)))
passes("_pad_circular", lambda x: aten._pad_circular(x, [1, 1]), "signal")
passes("pad", lambda x: F.pad(x, (1, 1), mode="circular"), "signal", note="circular")
passes("_pad_enum", lambda x: aten._pad_enum(x, [1, 1], 1), "signal")

# --- reductions ---

fixes("softmax", lambda x: x.softmax(-1))
fixes("_softmax", lambda x: aten._softmax(x, -1, False))
fixes("log_softmax", lambda x: x.log_softmax(-1))
fixes("_log_softmax", lambda x: aten._log_softmax(x, -1, False))
fixes("_safe_softmax", lambda x: aten._safe_softmax(x, -1))
fixes("cumsum", lambda x: x.cumsum(-1))
fixes("cumprod", lambda x: x.cumprod(-1))
fixes("logcumsumexp", lambda x: x.logcumsumexp(-1))
for name in ("softmax", "log_softmax", "cumsum", "cumprod", "logcumsumexp"):
    hides(name, lambda x, n=name: getattr(x, n)(1), note="over the tokens")
for name in ("sort", "mode", "cummax", "cummin"):
    hides(name, lambda x, n=name: getattr(x, n)(1)[0], note="over the tokens")
    fixes(name, lambda x, n=name: getattr(x, n)(-1)[0] if n != "mode" else x.mode(-1)[0].unsqueeze(-1))
hides("topk", lambda x: x.topk(2, 1)[0], note="over the tokens")
fixes("topk", lambda x: x.topk(2, -1)[1].to(x))
hides("kthvalue", lambda x: x.kthvalue(2, 1)[0], note="over the tokens")
fixes("kthvalue", lambda x: x.kthvalue(2, -1)[0].unsqueeze(-1))
for name in ("mean", "amax", "amin", "var", "std", "logsumexp", "prod", "argmax", "argmin", "nansum", "count_nonzero"):
    known = passes if name in ("mean", "amax", "amin") else hides
    known(name, lambda x, n=name: getattr(torch, n)(x, dim=1).to(x), note="over the tokens")
    fixes(name, lambda x, n=name: getattr(torch, n)(x, dim=-1).to(x).unsqueeze(-1))
for name in ("mean", "sum", "amax", "amin"):
    passes(name, lambda x, n=name: getattr(torch, n)(by_head(x), dim=-1), note="pairs", units=runs(2))
for name in ("max", "min"):
    passes(name, lambda x, n=name: getattr(torch, n)(by_head(x), dim=-1)[0], note="pairs", units=runs(2))
hides("median", lambda x: by_head(x).median(-1)[0], note="pairs", units=runs(2))
passes("sum", lambda x: x.sum(1), note="over the tokens")
passes("sum", lambda x: x.sum(-1))
passes("sum", lambda x: x.sum().view(1), note="of everything")
fixes("sum", lambda x: x.exp().sum(-1), note="of the units, never zero")
for name in ("max", "min", "median", "aminmax", "var_mean", "std_mean"):
    hides(name, lambda x, n=name: getattr(torch, n)(x, dim=1)[0], note="over the tokens")
    fixes(name, lambda x, n=name: getattr(torch, n)(x, dim=-1)[1].to(x).unsqueeze(-1))
hides("max", lambda x: torch.max(x, x.tanh()), note="of two tensors")
fixes("max", lambda x: x.max().view(1), note="of everything")
hides("norm", lambda x: aten.norm(x, 2, [1]), note="over the tokens")
fixes("norm", lambda x: aten.norm(x, 2, [-1]))
hides("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, dim=1), note="over the tokens")
fixes("linalg_vector_norm", lambda x: torch.linalg.vector_norm(x, dim=-1))
for name in ("all", "any"):
    hides(name, lambda x, n=name: getattr(torch, n)(x > 0, dim=1).to(x), note="over the tokens")
    fixes(name, lambda x, n=name: getattr(torch, n)(x > 0, dim=-1).to(x))

ABSENT: dict[str, str] = {}


# --- several in a row ---


class Chain(nn.Module):
    """Operations of the table one after the other, some with a residual connection around them."""

    def __init__(self, seed: int, length: int = 4) -> None:
        super().__init__()
        draw = random.Random(seed)
        cases = [draw.choice(_shape_keeping()) for _ in range(length)]
        self.notes = " > ".join(case.id for case in cases)
        self.steps = nn.ModuleList([as_module(case.op(6)) for case in cases])
        self.residual = [draw.random() < 0.4 for _ in cases]

    def forward(self, x: Tensor) -> Tensor:
        for step, residual in zip(self.steps, self.residual, strict=True):
            x = step(x) + x if residual else step(x)
        return x


@functools.cache
def _shape_keeping() -> list[OpCase]:
    """Cases on six units of tokens that give six units of tokens."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    cases = [c for c in CASES if (c.kind, c.width) == ("tokens", 6) and not c.name.startswith(("rand", "empty"))]
    return [c for c in cases if as_module(c.op(6)).double().eval()(x).shape == x.shape]


def chain(seed: int) -> OpCase:
    return OpCase("chain", str(seed), lambda n: Chain(seed), "tokens", 6, singles(6), "sound", False)


ABSENT = {
    "_assert_async": "torch.export drops it",
    "_batch_norm_with_update": "training only",
    "_grouped_mm": "not in float64; grouped_mm_fallback has the same rule",
    "_local_scalar_dense": "torch.export writes item",
    "_scaled_dot_product_fused_attention_overrideable": "needs another device",
    "bincount": "its size depends on data, which is refused",
    "cudnn_batch_norm": "needs a CUDA device",
    "is_nonzero": "control flow that depends on data, which is refused",
    "nonzero": "its size depends on data, which is refused",
    "size": "torch.export writes sym_size",
    "sym_constrain_range": "torch.export writes _assert_scalar",
    "sym_constrain_range_for_size": "torch.export writes _assert_scalar",
    "sym_numel": "torch.export writes sym_size",
    "sym_storage_offset": "always a number",
    "sym_stride": "torch.export writes sym_size",
}

# What torch.export always writes with other operations ("": with none). Nearly all are views that belong to autograd.
DECOMPOSED = {
    "_reshape_alias": "view",
    "_unsafe_index": "index",
    "adjoint": "transpose",
    "alpha_dropout": "",
    "atleast_1d": "view",
    "atleast_2d": "view",
    "atleast_3d": "view",
    "batch_norm": "_native_batch_norm_legit_no_training",
    "broadcast_to": "expand",
    "chunk": "split",
    "contiguous": "clone",
    "detach_": "detach",
    "dropout": "clone",
    "expand_as": "expand",
    "feature_alpha_dropout": "",
    "feature_dropout": "",
    "flatten": "view",
    "inner": "mm",
    "lift_fresh": "clone",
    "lift_fresh_copy": "clone",
    "mH": "transpose",
    "mT": "transpose",
    "matrix_H": "transpose",
    "moveaxis": "permute",
    "movedim": "permute",
    "narrow": "slice",
    "native_batch_norm": "_native_batch_norm_legit_no_training",
    "numpy_T": "permute",
    "positive": "",
    "ravel": "view",
    "reflection_pad1d": "pad",
    "reflection_pad2d": "pad",
    "reflection_pad3d": "pad",
    "replication_pad1d": "pad",
    "replication_pad2d": "pad",
    "replication_pad3d": "pad",
    "reshape": "view",
    "reshape_as": "view",
    "softshrink": "where",
    "sub": "rsub",
    "swapaxes": "transpose",
    "swapdims": "transpose",
    "tensor_split": "slice",
    "to": "_to_copy",
    "unflatten": "view",
    "unsafe_chunk": "unsafe_split",
    "view_as": "view",
}
