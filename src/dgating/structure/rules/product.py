"""Products with weights and between activations: the labels of the contracted axis are merged and consumed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dgating.structure._call import Call
from dgating.structure._capture import module_of
from dgating.structure._engine import Engine
from dgating.structure._factors import Factor, Shape, combine, seal, single
from dgating.structure._info import Info
from dgating.structure._labels import Ids
from dgating.structure._uses import DirectUse, Fold, Heads, MatrixUse
from dgating.structure.rules import _values
from dgating.structure.rules._registry import rule
from dgating.structure.rules._rows import for_every_row
from dgating.structure.rules.indexing import route_of


@rule("linear")
def linear(e: Engine, call: Call) -> Info:
    """``x W^T + b``."""
    x, w = call["input"], call["weight"]
    if not w.static or w.ndim != 2:
        product = activations(e, call, x, _transposed(w))
        if call["bias"] is None:
            return product
        known = _values.evaluate(torch.add, [product.value, call["bias"].value])
        return Info(call.out, e.elementwise(call, [product, call["bias"]]), known)
    return project(e, call, x, -1, w, 1, 0, call["bias"])


@rule("addmm")
def addmm(e: Engine, call: Call) -> Info:
    """``b + x W``."""
    x, w, b = call["mat1"], call["mat2"], call["self"]
    if not w.static or call["alpha"] != 1 or call["beta"] != 1 or not b.static or b.ndim != 1:
        product = activations(e, call, x, w)
        return Info(call.out, e.elementwise(call, [product, b]))
    return project(e, call, x, -1, w, 0, 1, b)


@rule("matmul", "mm", "bmm", "mv", "dot", "linalg_matmul", by_row=True)
def matmul(e: Engine, call: Call) -> Info:
    """A matrix product; with weights on one side it is a layer, else attention or the like."""
    names = list(call.args)
    x, y = call[names[0]], call[names[1]]
    if y.picked is not None and x.ndim == 3 and x.picked is None:
        return routed(e, call, x, 2, y.picked[0], 1, y.picked[1])
    if x.picked is not None and y.ndim == 3 and y.picked is None:
        return routed(e, call, y, 1, x.picked[0], 2, x.picked[1])
    x, y = for_every_row(e, x), for_every_row(e, y)
    if y.static and y.ndim == 2 and x.ndim >= 1:
        return project(e, call, x, -1, y, 0, 1, None)
    if x.static and x.ndim == 2 and y.ndim >= 2:
        return project(e, call, y, -2, x, 1, 0, None)
    if y.static and y.ndim == 3 and x.ndim == 3 and x.shape[0] == y.shape[0]:
        return stacked(e, call, x, y)
    return activations(e, call, x, y)


@rule("baddbmm")
def baddbmm(e: Engine, call: Call) -> Info:
    """``input + x y``, batched."""
    x, y = call["batch1"], call["batch2"]
    product = stacked(e, call, x, y) if y.static and y.ndim == 3 else activations(e, call, x, y)
    return Info(call.out, e.elementwise(call, [product, call["self"]]))


@rule("_grouped_mm", "transformers::grouped_mm_fallback", by_row=True)
def grouped_mm(e: Engine, call: Call) -> Info:
    """Rows routed to experts: row ``t`` meets the matrix of its expert, so labels differ from expert to expert."""
    names = list(call.args)
    x, w, route = call[names[0]], call[names[1]], call[names[2]] if len(names) > 2 else None
    if x.ndim != 2 or w.ndim != 3 or not w.static or not isinstance(route, Info):
        for info in call.tensors:
            e.fix(info, f"no rule for this form of {call.where}")
        return Info(call.out)
    return routed(e, call, x, 1, w, 1, route_of(call.node.args[2]))  # type: ignore[arg-type]


def routed(e: Engine, call: Call, x: Info, axis: int, w: Info, w_in: int, route: object) -> Info:
    """Axis ``axis`` of ``x`` is contracted with axis ``w_in`` of the matrix of each row's expert, out of a stack."""
    experts, w_out = w.shape[0], 3 - w_in
    k, n = w.shape[w_in], w.shape[w_out]
    for f in w.factors:
        if f.axes == (0,):
            e.labels.fix(f.ids, f"{call.where} addresses its axis by index")
    inputs = np.zeros((experts, k), dtype=np.int64)
    found = x.on(axis)
    for f in found:
        if len(found) > 1 or f.axes != (axis,) or (f.ids.shape[0] > 1 and f.route is not route):
            e.labels.fix(f.ids, f"it meets {call.where}")
        else:
            inputs = np.broadcast_to(f.ids.reshape(f.ids.shape[0], k), (experts, k))
    win, wout = joint(e, w, (0, w_in), call.where), joint(e, w, (0, w_out), call.where)
    e.labels.union(inputs, win)
    _stack(e, w)
    by_expert = x.value is not None and x.value.ndim > x.ndim and x.value.numel() == x.value.shape[0] * k
    known = x.value.reshape(-1, k).double() if by_expert else x.value_along(axis)  # type: ignore[union-attr]
    known = known.expand(experts, k)
    assert w.value is not None
    weight = w.value.transpose(1, 2) if w_in == 1 else w.value
    _note(e, call, weight, e.labels.find(win), wout, known, None)
    value = affine(e, weight, known, 0.0, experts * n, constant=True)
    shape = (experts, *(n if a == axis else 1 for a in range(x.ndim)))
    factors = [f for f in x.factors if not f.depends(axis)] + [Factor(wout.reshape(shape), route)]
    return Info(call.out, factors, None if value is None else value.reshape(shape))


def project(e: Engine, call: Call, x: Info, axis: int, w: Info, w_in: int, w_out: int, bias: Info | None) -> Info:
    """A layer: axis ``axis`` of ``x`` is contracted with axis ``w_in`` of a weight and replaced by ``w_out``."""
    axis %= x.ndim
    inputs = e.along(x, axis, f"it meets {call.where}")
    of_weight = e.along(w, w_in, f"it meets {call.where}")
    if not inputs.any():
        e.labels.fix(of_weight, "it reads an axis that is fixed")
    e.labels.union(inputs, of_weight)
    outputs = e.along(w, w_out, f"it meets {call.where}")
    e.role(w, w_in, "in")
    e.role(w, w_out, "out")
    if bias is not None:
        e.labels.union(e.along(bias, -1, f"it meets {call.where}"), outputs)
        e.role(bias, 0, "out")
    n = w.shape[w_out]
    assert w.value is not None
    weight = w.value if w_in == 1 else w.value.t()
    known = x.value_along(axis)
    fold = _fold(call, w, bias) if axis == x.ndim - 1 else None
    _note(e, call, weight[None], inputs[None], outputs[None], known[None], fold)
    value = affine(e, weight[None], known[None], shift_of(bias), n, constant=True)
    out = call.out
    if len(out) == x.ndim:
        factors = [f for f in x.factors if not f.depends(axis)]
        factors.append(single(outputs, axis, x.ndim))
        shape: Shape = tuple(n if a == axis else 1 for a in range(x.ndim))
        return Info(out, factors, None if value is None else value.reshape(shape))
    e.labels.fix(outputs, f"it meets {call.where}")
    return Info(out)


def shift_of(bias: Info | None) -> Tensor | float:
    """What a bias adds: nothing where there is none, something unknown where it is computed."""
    return 0.0 if bias is None else _values.NAN if bias.value is None else bias.value.double()


def affine(e: Engine, weight: Tensor, known: Tensor, shift: Tensor | float, n: int, constant: bool) -> Tensor | None:
    """Known outputs of a product: rows whose unknown inputs all have zero weights.

    ``weight`` is ``(g, n/g, k)``, ``known`` ``(g, k)``. Without ``constant``, inputs other than zero count as varying.
    """
    if not e.values:
        return None
    varies = known.isnan() if constant else known != 0
    rows = torch.zeros(weight.shape[:2], dtype=torch.bool)
    total = torch.zeros(weight.shape[:2], dtype=torch.float64)
    for g in range(weight.shape[0]) if weight.shape[0] <= 8 else [slice(None)]:
        w, v = weight[g], varies[g]
        rows[g] = w.ne(0).any(-1) if bool(v.all()) else (w.ne(0) & v.unsqueeze(-2)).any(-1)
        if constant and bool((known[g].nan_to_num() != 0).any()):
            total[g] = (w.double() * known[g].nan_to_num().unsqueeze(-2)).sum(-1)
    if bool(rows.all()):
        return None
    result = torch.where(rows, _values.NAN, total).reshape(n)
    return _values.worth(result + shift)


def _note(e: Engine, call: Call, weight: Tensor, inputs: Ids, outputs: Ids, known: Tensor, fold: Fold | None) -> None:
    e.note_matrix(MatrixUse(call.node, inputs, outputs, weight, known, weight, fold, call.where))


def _fold(call: Call, w: Info, bias: Info | None) -> Fold | None:
    """A constant can move into the bias if the layer has one, or is a module that can be given one."""
    if w.weight is None:
        return None
    path, kind = module_of(call.node)
    if bias is not None:
        return None if bias.weight is None else Fold(w.weight, bias.weight, path)
    return Fold(w.weight, None, path) if kind == "torch.nn.modules.linear.Linear" else None


def joint(e: Engine, x: Info, axes: tuple[int, int], where: str) -> Ids:
    """Labels over two axes of a weight (0 where fixed); a factor over the second alone is repeated."""
    a, b = axes
    result = np.zeros((x.shape[a], x.shape[b]), dtype=np.int64)
    found = x.on(b)
    if len(found) > 1:
        e.note_merged(found)
        for f in found:
            e.labels.fix(f.ids, f"it meets {where}")
        return result
    for f in found:
        sealed = seal(e.labels, f, [i for i in f.axes if i not in axes], f"it meets {where}")
        if sealed is not None and sealed.ids.shape[0] == 1:
            shape = tuple(sealed.ids.shape[i + 1] for i in axes)
            ids = sealed.ids.reshape(shape) if a < b else sealed.ids.reshape(shape[::-1]).T
            result = np.broadcast_to(ids, result.shape)
    return result


def stacked(e: Engine, call: Call, x: Info, w: Info) -> Info:
    """One matrix an index of the first axis, as in dense mixtures of experts: ``(E, n, k) @ (E, k, m)``."""
    experts, _, m = w.shape
    inputs = joint(e, x, (0, 2), call.where)
    win, wout = joint(e, w, (0, 1), call.where), joint(e, w, (0, 2), call.where)
    if not inputs.any():
        e.labels.fix(win, "it reads an axis that is fixed")
    e.labels.union(inputs, win)
    _stack(e, w)
    pure = [[f for f in i.factors if not f.depends(2) and (i is x or not f.depends(1))] for i in (x, w)]
    batch = combine(
        e.labels,
        [((*x.shape[:2], 1), pure[0]), ((experts, 1, 1), pure[1])],
        (experts, x.shape[1], 1),
        f"it meets {call.where}",
    )
    known = torch.stack([_row(x, g).value_along(1) for g in range(experts)])
    assert w.value is not None
    weight = w.value.transpose(1, 2)
    _note(e, call, weight, inputs, wout, known, None)
    value = affine(e, weight, known, 0.0, experts * m, constant=True)
    return Info(
        call.out,
        [*batch, Factor(wout.reshape(1, experts, 1, m))],
        None if value is None else value.reshape(experts, 1, m),
    )


def _stack(e: Engine, w: Info) -> None:
    """Remember a stack of matrices and which of its axes is read, whichever way round it is stored."""
    assert w.value is not None
    where = w.value.data_ptr()
    source = next((i for i in e.by_tensor.values() if i.weight and i.weight.tensor.data_ptr() == where), None)
    if source is None or source.ndim != 3:
        return
    e.experts.append([source.weight.name])  # type: ignore[union-attr]
    same = tuple(source.shape) == tuple(w.shape) and w.value.stride() == source.value.stride()  # type: ignore[union-attr]
    e.role(source, 1 if same else 2, "in")
    e.role(source, 2 if same else 1, "out")


def _row(x: Info, g: int) -> Info:
    value = None if x.value is None else x.value[g if x.value.shape[0] > 1 else 0]
    return Info(x.shape[1:], [], value)


def activations(e: Engine, call: Call, x: Info, y: Info) -> Info:
    """``(..., n, k) @ (..., k, m)`` of two activations; what labels the batch axes (attention heads) is merged."""
    if x.ndim < 2 or y.ndim < 2:
        for info in (x, y):
            e.fix(info, f"it meets {call.where}")
        return Info(call.out)
    out, reason = call.out, f"it meets {call.where}"
    values = e.class_of(y.factors)
    fx, fy = list(x.factors), list(y.factors)
    pure_x = [f for f in fx if f.axes == (x.ndim - 1,)]
    pure_y = [f for f in fy if f.axes == (y.ndim - 2,)]
    if len(pure_x) == 1 and len(pure_y) == 1:
        fx = [f for f in fx if f not in pure_x]
        fy = [f for f in fy if f not in pure_y]
        ids_x, ids_y = pure_x[0].ids.reshape(-1), pure_y[0].ids.reshape(-1)
        e.labels.union(ids_x, ids_y)
        zero = (x.value_along(x.ndim - 1) == 0) | (y.value_along(y.ndim - 2) == 0)
        e.uses.append(DirectUse(ids_x, None, zero.numpy(), f"{call.where} adds it up"))
    fx = e.seal(fx, [x.ndim - 1], reason)
    fy = e.seal(fy, [y.ndim - 2], reason)
    factors = combine(e.labels, [((*x.shape[:-1], 1), fx), ((*y.shape[:-2], 1, y.shape[-1]), fy)], out, reason)
    for f in factors:
        if set(f.axes) <= set(range(len(out) - 2)) and f.axes:
            e.heads.append(Heads(call.node, f.ids, values))
    return Info(out, factors, _zero_product(x, y))


def _zero_product(x: Info, y: Info) -> Tensor | None:
    """Zero where a whole row of ``x`` or a whole column of ``y`` is zero."""
    result = None
    for value, axis in ((x.value, -1), (y.value, -2)):
        if value is None:
            continue
        zero = (value == 0).all(axis, keepdim=True)
        if bool(zero.any()):
            mine = torch.where(zero, torch.zeros((), dtype=torch.float64), _values.NAN)
            result = mine if result is None else torch.where((mine == 0) | (result == 0), 0.0, _values.NAN)
    return result


def _transposed(w: Info) -> Info:
    value = None if w.value is None else w.value.transpose(-1, -2)
    factors = [Factor(np.swapaxes(f.ids, -1, -2), f.route) for f in w.factors]
    return Info((*w.shape[:-2], w.shape[-1], w.shape[-2]), factors, value, w.static)
