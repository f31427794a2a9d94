"""Progressive compaction: a gated model without its dead groups, and the way back to the full size.

A path only ever loses groups. What is zero is cut out between two strengths, and the rest of the path trains the
smaller model: dead input features become columns less of the data, anything else is removed by the structure engine.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from dgating.compaction import CompactionPlan, compact
from dgating.gating import (
    UNGATED,
    Groups,
    Member,
    Part,
    Unit,
    collapse_,
    gate_,
    is_gated,
    partition_by_labels,
    units,
    zero_,
)
from dgating.paths._data import Data
from dgating.structure import CompactionError, apply

Where = tuple[str, int]  # name of the Groups and number of the part


class Shrinking:
    """A gated model that loses its dead groups, in the numbering of the full one.

    Attributes:
        model: the gated model as small as it is now (without gates once every group is gone).
        data: what it is trained on, without the columns that it does not take any more.
        columns: those of the full first input that are left.
    """

    def __init__(self, model: nn.Module, data: Data, physical: bool = True) -> None:
        found = units(model)
        fresh = all(bool((u.gates() == 1).all()) for u in found)
        self.model, self.data, self.physical = model, data, physical
        self.columns = torch.arange(data.width)
        self.depth = {_where(u): u.depth for u in found}
        self.counts = {_where(u): u.n_groups for u in found}
        self.labels = {
            _where(u): [(s.name, s.gate.partition.labels.expand(s.gate.partition.shape)) for s in u.sites]
            for u in found
        }
        several = {name for name, part in self.depth if part > 0}
        self.names = {where: f"{where[0]}[{where[1]}]" if where[0] in several else where[0] for where in self.depth}
        collapse_(model)
        self.shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        # the flat position in the full tensor of every entry that is left
        self.places = {name: torch.arange(t.numel()).reshape(t.shape) for name, t in model.state_dict().items()}
        self.narrow = physical  # whether columns of the data can go: tried out once
        self._alive = {where: self._left(where) for where in self.counts}
        self._gate(balanced=not fresh)

    def copy(self) -> Shrinking:
        """Another one that goes on from here; the data are shared."""
        made = copy.copy(self)
        made.model = copy.deepcopy(self.model)
        made.places, made._alive = dict(self.places), dict(self._alive)
        return made

    def seen(self, data: Data) -> Data:
        """Other rows with the columns that the model takes now."""
        if len(self.columns) == data.width:
            return data
        return data.narrow(self.columns.to(data.target.device))

    def norms(self) -> dict[str, Tensor]:
        """``(J,)`` norms of all groups by name; zero for those that are gone."""
        found = {u.groups: u for u in units(self.model)} if is_gated(self.model) else {}
        parts: dict[str, list[Tensor]] = {}
        for where, n in self.counts.items():
            full = torch.zeros(n)
            if (unit := found.get(self.names[where])) is not None:
                full[self._alive[where]] = unit.norms().detach().cpu().float()
            parts.setdefault(where[0], []).append(full)
        return {name: torch.cat(p) for name, p in parts.items()}

    def full_state(self, model: nn.Module | None = None) -> dict[str, Tensor]:
        """The collapsed weights (of a model of the same sizes) at full size on the CPU, zeros where nothing is left."""
        plain = copy.deepcopy(self.model if model is None else model)
        if is_gated(plain):
            collapse_(plain)
        out = {}
        for name, t in plain.state_dict().items():
            full = torch.zeros(self.shapes[name], dtype=t.dtype)
            full.view(-1)[self.places[name].reshape(-1)] = t.detach().cpu().reshape(-1)
            out[name] = full
        return out

    def n_parameters(self) -> int:
        """Parameters of the model as it is now, without gates."""
        gates = {id(u.gamma): u.gamma.numel() for u in units(self.model)} if is_gated(self.model) else {}
        return sum(p.numel() for p in self.model.parameters()) - sum(gates.values())

    def drop(self, dead: dict[str, Tensor]) -> bool:
        """Make groups zero (numbering of the full model) and cut out whatever nothing depends on any more.

        Returns whether anything died: then the model has new parameters, or old ones at zero, and an optimizer that
        remembers how they moved would move them again.
        """
        if not is_gated(self.model):
            return False
        norms = self.norms()
        new = {name: mask.cpu() & (norms[name] > 0) for name, mask in dead.items()}
        if not any(bool(mask.any()) for mask in new.values()):
            return False
        zero_(self.model, self._local(new))
        if self.physical:
            collapse_(self.model)
            if self.narrow:
                self._narrow()
            self._alive = {where: self._left(where) for where in self.counts}
            if any(bool(mask.any()) for mask in self._local(new).values()):  # something is still in the model
                self._compact()
                self._alive = {where: self._left(where) for where in self.counts}
            self._gate()
        return True

    def _left(self, where: Where) -> Tensor:
        """Numbers of the groups of a part that are still in the model."""
        left = [labels.reshape(-1)[self.places[name].reshape(-1)].unique() for name, labels in self.labels[where]]
        ids = torch.cat(left).unique()
        return ids[ids != UNGATED]

    def _local(self, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masks over the groups that are left, by the names that they bear now."""
        out: dict[str, Tensor] = {}
        start: dict[str, int] = {}
        for where, n in self.counts.items():
            name, _ = where
            first = start.get(name, 0)
            start[name] = first + n
            if name in masks and len(alive := self._alive[where]):
                out[self.names[where]] = masks[name][first : first + n][alive]
        return out

    def _narrow(self) -> None:
        """Take the columns that one linear layer does not read out of the data, if it alone reads the data."""
        batch = self.data.rows(slice(64))
        readers: list[str] = []

        def note(module: nn.Module, args: tuple[object, ...], path: str) -> None:
            if args and args[0] is batch.inputs[0]:
                readers.append(path)

        handles = [
            m.register_forward_pre_hook(lambda m, a, path=path: note(m, a, path))
            for path, m in self.model.named_modules()
            if path or not list(self.model.children())
        ]
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                before = self.model(*batch.inputs)
                for handle in handles:
                    handle.remove()
                layers = [(p, m) for p in readers if isinstance(m := self.model.get_submodule(p), nn.Linear)]
                if len(layers) != 1 or batch.inputs[0].ndim != 2:
                    self.narrow = False
                    return
                path, layer = layers[0]
                keep = (layer.weight != 0).any(0)
                if bool(keep.all()) or not bool(keep.any()):
                    return
                full, keep = layer.weight, keep.nonzero()[:, 0]
                layer.weight, layer.in_features = nn.Parameter(full.index_select(1, keep)), len(keep)
                try:
                    same = torch.allclose(self.model(*batch.columns(keep).rows().inputs), before, rtol=1e-4, atol=1e-5)
                except Exception:  # something else reads the data, too
                    same = False
                if not same:
                    layer.weight, layer.in_features, self.narrow = full, full.shape[1], False
                    return
        finally:
            for handle in handles:
                handle.remove()
            self.model.train(training)
        name = f"{path}.weight".lstrip(".")
        self.places[name] = self.places[name].index_select(1, keep.cpu())
        self.columns = self.columns[keep.cpu()]
        self.data = self.data.columns(keep)

    def _compact(self) -> None:
        batch = self.data.rows(slice(4))
        try:
            small = compact(self.model, batch.inputs, fold_constants=False)
        except CompactionError:  # then the dead groups stay as zeros
            self.physical = self.narrow
            return
        plan: CompactionPlan = small.compaction  # type: ignore[assignment]
        tied = {id(t): n for n, t in self.model.state_dict(keep_vars=True).items() if n in plan.slices}
        for name, t in self.model.state_dict(keep_vars=True).items():
            if id(t) in tied:
                self.places[name] = apply(self.places[name], plan.slices[tied[id(t)]])
        self.model = small

    def _gate(self, balanced: bool = True) -> None:
        """Gate what is left; with balanced factors the path goes on where it was."""
        for where, members in self.labels.items():
            alive = self._alive[where]
            if not len(alive):
                continue
            made = []
            for name, labels in members:
                here = labels.reshape(-1)[self.places[name]]
                if bool((here == UNGATED).all()):
                    continue
                numbers = torch.where(here == UNGATED, UNGATED, torch.searchsorted(alive, here))
                owner, _, attribute = name.rpartition(".")
                partition = partition_by_labels(tuple(here.shape), _thin(numbers), len(alive))
                made.append(Member(self.model.get_submodule(owner), attribute, partition))
            gate_(self.model, Groups((Part(tuple(made)),), self.names[where]), self.depth[where])
        if balanced and is_gated(self.model):
            for u in units(self.model):
                balance_(u)


def _where(u: Unit) -> Where:
    return u.groups, u.part


def _thin(labels: Tensor) -> Tensor:
    """Size one along axes along which labels do not change."""
    for axis in range(labels.ndim):
        first = labels.narrow(axis, 0, 1)
        if bool((labels == first).all()):
            labels = first
    return labels


@torch.no_grad()
def balance_(u: Unit) -> None:
    r"""Make all factors of a group the size :math:`\|W_j\|^{1/D}`, where the penalty is smallest; ``W`` stays."""
    norms = u.norms()
    size = norms.pow(1 / u.depth)
    u_norms = u.omega_norms()
    scale = torch.where(u_norms > 0, size / u_norms.clamp(min=1e-30), torch.zeros_like(size))
    sign = u.gates().prod(0).sign()
    for site in u.sites:
        site.omega.mul_(site.gate.layout.expand((scale * sign).to(site.omega), site.gate.labels))
    u.gamma.copy_(size.to(u.gamma).expand_as(u.gamma))
