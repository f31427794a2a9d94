"""The engine: walk a graph once and learn which labels its tensors carry, which values are known and who uses what.

The rules (``structure/rules``) do the work, one an operation; this file holds what they share.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from dgating.structure._call import Call, is_convolution, is_row_index
from dgating.structure._capture import Captured, module_of
from dgating.structure._factors import Factor, Shape, combine, seal, simplify, single
from dgating.structure._info import Info, as_list, as_outputs, hint, shape_of
from dgating.structure._labels import Ids, Labels
from dgating.structure._uses import Blocks, DirectUse, Expansion, Heads, MatrixUse

Rule = Callable[["Engine", Call], "Info | list[Info] | None"]


class Engine:
    """State of one analysis."""

    def __init__(
        self,
        captured: Captured,
        rules: dict[str, Rule],
        fallback: Callable[[Any], Rule | None],
        plain: dict[tuple[str, tuple[int, ...]], str] | None = None,
        values: bool = True,
        loose: bool = True,
        layouts: dict[str, set[tuple[int, ...]]] | None = None,
        training: bool = False,
    ) -> None:
        # axes of weights that an earlier walk saw merged into one: they are labelled jointly
        self.layouts = layouts or {}
        self.training = training  # whether known values must hold in training mode, too
        self.merged: dict[str, set[tuple[int, ...]]] = {}
        self.origins: list[tuple[int, str, int]] = []  # first label, weight and axis
        self.loose = loose  # whether tensors that are filled or copied in the forward may become smaller
        self.captured = captured
        self.readers: dict[int, list[tuple[Node, Node]]] = {}  # by tensor: a tied weight comes in as several nodes
        for node, weight in captured.weights.items():
            self.readers.setdefault(id(weight.tensor), []).extend((node, user) for user in node.users)
        self.values = values  # a walk for labels alone leaves out the products with weights
        self.plain = plain or {}  # axes that an earlier walk found fixed, with the reason: they get no labels
        self.rules, self.fallback = rules, fallback
        self.labels = Labels()
        self.info: dict[Node, Any] = {}
        self.by_tensor: dict[int, Info] = {}  # tied weights have one set of labels
        self.uses: list[MatrixUse | DirectUse] = []
        self.expansions: list[Expansion] = []
        self.blocks: list[Blocks] = []
        self.boxes: list[Ids] = []  # label arrays of which only whole rows and columns may leave
        self.strides: list[Ids] = []  # rows of positions that leave together (slices with a step)
        self.heads: list[Heads] = []
        self.matrices: dict[int, list[MatrixUse]] = {}
        self.unknown: dict[str, list[str]] = {}
        # buffers that the forward itself changes hold no constants
        signature = captured.program.graph_signature
        self.mutated = set(signature.buffers_to_mutate.values())
        inverse = {target: name for name, target in signature.inputs_to_buffers.items()}
        self.mutated = {inverse[target] for target in self.mutated if target in inverse}
        self.roles: dict[tuple[str, int], str] = {}
        self.experts: list[list[str]] = []  # stacked weights, one matrix an expert

    # --- the walk ---

    def run(self) -> Engine:
        for node in self.captured.program.graph.nodes:
            if node.op == "placeholder":
                self.info[node] = self._placeholder(node)
            elif node.op == "call_function":
                self.info[node] = self._call(node)
        for node in self.captured.outputs:
            for info in as_list(self.info.get(node)):
                for f in info.factors:
                    self.labels.fix(f.ids, "it is an output of the model")
        self._join_expansions()
        return self

    def fixed_axes(self) -> dict[tuple[str, tuple[int, ...]], str]:
        """Axes of weights on which no label is free, and why."""
        found = dict(self.plain)
        for info in self.by_tensor.values():
            for f in info.factors if info.weight is not None else ():
                if bool(self.labels.fixed(f.ids).all()):
                    found[info.weight.name, f.axes] = self.labels.reason(int(f.ids.reshape(-1)[0]))  # type: ignore[union-attr]
        return found

    def _placeholder(self, node: Node) -> Info | None:
        val = node.meta.get("val")
        if not isinstance(val, Tensor):
            return None
        weight = self.captured.weights.get(node)
        if weight is None:
            return Info(shape_of(val), node=node)
        known = self.by_tensor.get(id(weight.tensor))
        if known is not None:
            return known
        value = weight.tensor.detach() if weight.tensor.is_floating_point() else None
        if node.name in self.mutated:
            return Info(shape_of(val), node=node)
        indices = weight.tensor if value is None and not weight.tensor.is_complex() else None
        info = Info(shape_of(val), [], value, value is not None, weight, node, indices)
        # a factor of a parametrised weight has no slices of its own that could leave
        if weight.kind != "constant" and ".parametrizations." not in f".{weight.name}":
            info.factors = self._weight_factors(node, info.shape)
            info.factors = [f for f in info.factors if (weight.name, f.axes) not in self.plain]
        self.by_tensor[id(weight.tensor)] = info
        return info

    def _weight_factors(self, node: Node, shape: Shape) -> list[Factor]:
        """One label an index of each axis. Stacked matrices (experts) have labels of their own in every matrix, and
        the rules of convolutions lay out theirs themselves."""
        readers = self.readers[id(self.captured.weights[node].tensor)]
        if any(is_convolution(user) and user.args[1] is place for place, user in readers):
            return [single(self.labels.fresh((shape[0],)), 0, len(shape))] if shape[0] > 1 else []
        ndim = len(shape)
        name = self.captured.weights[node].name
        if name in self.layouts:
            return self._joint_factors(shape, self.layouts[name])
        # a walk for labels alone leaves axes apart, to see which of them are merged
        stacked = self.values and ndim > 1 and shape[0] > 1
        stacked = stacked and (ndim >= 3 or any(is_row_index(user, place) for place, user in readers))
        factors = []
        for axis, n in enumerate(shape):
            if n == 1:
                continue
            self.origins.append((len(self.labels), name, axis))
            if axis == 0 or not stacked:
                factors.append(single(self.labels.fresh((n,)), axis, ndim))
            else:
                ids = self.labels.fresh((shape[0], n))
                factors.append(Factor(ids.reshape(1, shape[0], *(n if i == axis else 1 for i in range(1, ndim)))))
        return factors

    def _joint_factors(self, shape: Shape, merged: set[tuple[int, ...]]) -> list[Factor]:
        """One factor over all the axes that are merged somewhere, one for every other axis."""
        runs: list[set[int]] = [{a} for a in range(len(shape))]
        for axes in merged:
            touched = [r for r in runs if r & set(axes)]
            runs = [r for r in runs if not r & set(axes)] + [set().union(*touched)]
        factors = []
        for run in runs:
            size = tuple(n if a in run else 1 for a, n in enumerate(shape))
            if max(size, default=1) > 1:
                factors.append(Factor(self.labels.fresh(size)[None]))
        return factors

    def note_merged(self, found: Sequence[Factor]) -> None:
        """Several factors on one axis: if they are axes of one weight, the next walk labels them jointly."""
        starts = [start for start, _, _ in self.origins]
        by_weight: dict[str, set[int]] = {}
        for f in found:
            place = bisect.bisect_right(starts, int(f.ids.max())) - 1
            if place >= 0:
                _, name, axis = self.origins[place]
                by_weight.setdefault(name, set()).add(axis)
        for name, axes in by_weight.items():
            if len(axes) > 1:
                self.merged.setdefault(name, set()).add(tuple(sorted(axes)))

    def _call(self, node: Node) -> Any:
        if not hasattr(node.target, "_schema"):
            return self._python(node)
        call = Call(self.resolve, node)
        tensors = call.tensors
        rule = self.rules.get(call.name) or self.fallback(node.target)
        if rule is not None and call.name not in self.rules and not isinstance(node.meta.get("val"), Tensor):
            rule = None  # elementwise, but not one tensor: nothing we know
        if rule is None:
            return self._unknown(call)
        result = rule(self, call)
        static = bool(tensors) and all(t.static for t in tensors)
        for info in as_list(result):
            info.node = node
            whole = info.value is not None and tuple(info.value.shape) == info.shape
            info.static = static and whole and not info.partial
            info.factors = [g for f in info.factors if (g := simplify(self.labels, f)) is not None]
        for info, val in zip(as_list(result), as_outputs(node), strict=False):
            if info.value is not None and not info.static and val.dtype in (torch.bfloat16, torch.float16):
                info.value = info.value.to(val.dtype).double()  # what the operation itself rounds to
        return result

    def _tidy(self, factors: list[Factor]) -> list[Factor]:
        """Simplified factors, those over the very same axes merged."""
        found: dict[tuple[int, ...], Factor] = {}
        for f in factors:
            g = simplify(self.labels, f)
            if g is None:
                continue
            twin = found.get(g.axes)
            if twin is not None and twin.ids.shape == g.ids.shape:
                self.labels.union(twin.ids, g.ids)
            else:
                found[g.axes] = g
        return list(found.values())

    def _python(self, node: Node) -> Any:
        import operator

        if node.target is operator.getitem:
            source = self.info.get(node.args[0])  # type: ignore[arg-type]
            return source[node.args[1]] if isinstance(source, list) else None  # type: ignore[index]
        for a in node.all_input_nodes:
            self.fix(self.info.get(a), f"no rule for {node.target}")
        return None

    def _unknown(self, call: Call) -> Any:
        """No rule: whatever the operation touches stays as it is."""
        reason = f"no rule for {call.where}"
        touched = False
        for info in call.tensors:
            touched = touched or bool(info.factors)
            self.fix(info, reason)
        if touched:
            self.unknown.setdefault(call.name, []).append(module_of(call.node)[0])
        val = call.node.meta.get("val")
        if isinstance(val, Tensor):
            return Info(shape_of(val), node=call.node)
        if isinstance(val, list | tuple):
            return [Info(shape_of(v), node=call.node) if isinstance(v, Tensor) else None for v in val]
        return None

    def resolve(self, raw: Any) -> Any:
        """An argument as the rules see it: tensors as :class:`Info`, symbolic sizes as numbers."""
        if isinstance(raw, Node):
            found = self.info.get(raw)
            if found is not None:
                return found
            val = raw.meta.get("val")
            if isinstance(val, Tensor):  # from a node that is no operation, such as a branch
                return Info(shape_of(val), node=raw)
            return hint(val) if val is not None and not isinstance(val, Tensor) else val
        if isinstance(raw, list | tuple):
            return [self.resolve(r) for r in raw]
        return hint(raw)

    # --- what rules use ---

    def elementwise(self, call: Call, operands: Sequence[Info], out: Shape | None = None) -> list[Factor]:
        shape = call.out if out is None else out
        return combine(self.labels, [(i.shape, i.factors) for i in operands], shape, f"it meets {call.where}")

    def seal(self, factors: Iterable[Factor], axes: Iterable[int], reason: str) -> list[Factor]:
        axes = list(axes)
        sealed = (seal(self.labels, f, axes, reason) for f in factors)
        return [f for f in sealed if f is not None]

    def fix(self, info: Any, reason: str) -> None:
        for one in as_list(info):
            for f in one.factors:
                self.labels.fix(f.ids, reason)
            if one.weight is None:  # the report asks weights for the reason
                one.factors = []

    def along(self, info: Info, axis: int, reason: str) -> Ids:
        """One label an index of an axis (0 where fixed): joint factors are merged along their other axes."""
        axis %= info.ndim
        result = np.zeros(info.shape[axis], dtype=np.int64)
        found = info.on(axis)
        if len(found) > 1:
            self.note_merged(found)
            found = self._tidy(self.seal(found, [a for a in range(info.ndim) if a != axis], reason))
        if len(found) > 1:
            for f in found:
                self.labels.fix(f.ids, reason)
            return result
        for f in found:
            flat = np.moveaxis(f.ids, axis + 1, -1).reshape(-1, f.ids.shape[axis + 1])
            if len(flat) > 1:
                self.labels.union(flat[:1], flat)
            result = self.labels.find(flat[0])
        return result

    def role(self, info: Info, axis: int, role: str) -> None:
        """Remember which axis of a weight consumes and which produces: discovery needs it."""
        if info.weight is not None:
            self.roles[info.weight.name, axis % info.ndim] = role

    def note_matrix(self, use: MatrixUse) -> None:
        self.uses.append(use)
        if use.fold is not None:
            self.matrices.setdefault(id(use.fold.weight.tensor), []).append(use)

    def class_of(self, factors: Iterable[Factor]) -> Ids:
        """Every label that is in a class of these factors now, or in one that was copied into them."""
        roots = [np.unique(self.labels.find(f.ids)) for f in factors]
        wanted = np.unique(np.concatenate(roots)) if roots else np.zeros(0, dtype=np.int64)
        for x in reversed(self.expansions):
            hit = np.isin(self.labels.find(x.children), wanted)
            parents = np.broadcast_to(x.parents, x.children.shape)[hit]
            wanted = np.union1d(wanted, self.labels.find(parents))
        return np.flatnonzero(np.isin(self.labels.find(np.arange(len(self.labels))), wanted))

    def _join_expansions(self) -> None:
        """Where copies are not told apart after all, parent and child are one class."""
        while True:
            before = self.labels.find(np.arange(len(self.labels)))
            for e in self.expansions:
                children = self.labels.find(e.children)
                for axis in range(children.ndim):
                    if children.shape[axis] > 1 and axis not in e.axes:
                        first = children.take([0], axis)
                        if np.array_equal(np.broadcast_to(first, children.shape), children):
                            self.labels.union(e.parents.take([0], axis), e.parents)
                first = children
                for axis in e.axes:
                    first = first.take([0], axis)
                if np.array_equal(np.broadcast_to(first, children.shape), children):
                    self.labels.union(np.broadcast_to(e.parents, first.shape), first)
            if np.array_equal(before, self.labels.find(np.arange(len(self.labels)))):
                return
