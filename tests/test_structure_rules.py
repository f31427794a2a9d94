"""Every op rule keeps its contract: what it lets go can leave, what it fixes stays, and the function never changes."""

from __future__ import annotations

import copy
import functools
import random
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.export import Dim

import dgating as dg
from dgating.structure import _analyse, _capture
from dgating.structure.rules import RULES, keeps
from tests.rule_cases import ABSENT, CASES, DECOMPOSED, Branch, Once, OpCase, chain

SIZE = 40  # operations exported as one model: an export costs far more than an operation in it
MODES = ["zero", "unread", "mixed"]


class Many(nn.Module):
    """Operations that have nothing to do with each other, side by side."""

    def __init__(self, cases: tuple[OpCase, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([Branch(c) for c in cases])

    def forward(self, xs):
        return [branch(x) for branch, x in zip(self.branches, xs, strict=True)]


class Group:
    """Some cases as one model, exported once for all the weights that are tried."""

    def __init__(self, cases: tuple[OpCase, ...], free: bool = False) -> None:
        torch.manual_seed(0)
        self.cases = cases
        self.model = Many(cases).eval()
        self.inputs = [[b.example() for b in self.model.branches] for _ in range(2)]
        self.fresh = copy.deepcopy(self.model.state_dict())
        shapes = ([{0: Dim.AUTO} for _ in cases],) if free else None
        self.once = Once(self.model, ((self.inputs[0],), {}), shapes)

    def operations(self) -> list[set[str]]:
        """The operations in the graph, branch by branch, once torch has decomposed it: an export may need no step."""
        found: list[set[str]] = [set() for _ in self.cases]
        program, decomposed = self.once.exported.program, self.once.decomposed
        if not decomposed:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own
                program = program.run_decompositions(_capture._decompositions(keeps))
        for node in program.graph.nodes:
            stack = node.meta.get("nn_module_stack") or {}
            path = next((p for p, _ in stack.values() if p.startswith("branches.")), None)
            if hasattr(node.target, "_schema"):  # what only asks for sizes belongs to no module
                found[0 if path is None else int(path.split(".")[1])].add(node.target._schema.name)
        return found

    def compact(self, target: str) -> nn.Module:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_analyse, "capture", self.once.capture)
            return dg.compact(self.model, (self.inputs[0],), target=target, verify=False)


@torch.no_grad()
def silence(branch: Branch, case: OpCase, mode: str) -> set[int]:
    """Zero some units of the producer, or the slices that read them. The units that have to leave, if any."""
    draw = random.Random(f"{case.id} {mode}")
    bias, read = getattr(branch.a, "bias", None), branch.b.weight
    units = branch.a.weight if bias is not None else branch.a.weight.t()  # the columns of an embedding
    dead: set[int] = set()
    if mode in ("zero", "unread"):
        several = len(case.units) // 2 if len(case.units) < case.width else len(case.units) - 1
        for unit in draw.sample(case.units, draw.randint(1, max(several, 1))):
            dead.update(unit)
    if mode == "zero":
        units[list(dead)] = 0
        if bias is not None:
            bias[list(dead)] = 0
    if mode == "unread":
        if read.shape[1] == case.width:
            read[:, list(dead)] = 0
        elif read.shape[1] == len(case.units):
            read[:, [i for i, unit in enumerate(case.units) if dead.issuperset(unit)]] = 0
    if mode == "mixed":
        for i in draw.sample(range(case.width), case.width // 2):
            units[i] = draw.choice([0.0, 0.3, -0.7]) if bias is None else 0
            if bias is not None:
                bias[i] = draw.choice([0.0, 0.3, -0.7, 2.0])
        read[:, [i for i in range(read.shape[1]) if draw.random() < 0.3]] = 0
    return dead


@dataclass
class Outcome:
    """What became of one case: how many units left, why the rest stay, and how far the function moved."""

    dead: set[int]
    left: int
    sliced: list[str]
    reasons: list[str]
    worst: float


def outcome_of(group: Group, small: nn.Module, dead: list[set[int]]) -> list[Outcome | Exception]:
    plan = small.compaction
    worst = [0.0] * len(group.cases)
    with torch.no_grad():
        for inputs in group.inputs:
            for i, (x, y) in enumerate(zip(group.model(inputs), small(inputs), strict=True)):
                same = x.shape == y.shape and torch.equal(x.isnan(), y.isnan())
                far = (x - y).abs() / x.abs().clamp(min=1) if same else torch.full_like(x, float("inf"))
                gap = far[~((x == y) | x.isnan())] if same else far
                worst[i] = max(worst[i], float(gap.max()) if gap.numel() else 0.0)
    found: list[Outcome | Exception] = []
    for i, case in enumerate(group.cases):
        name = f"branches.{i}.a.weight"
        kept = [s.keep.shape[-1] for s in plan.slices.get(name, [])]
        reasons = [why for n, _, why in plan.fixed if n == name]
        reasons += [why for u in plan.units if name in [n for n, _ in u.sites] for why in u.kept_because]
        sliced = [n for n in plan.slices if n.startswith(f"branches.{i}.")]
        found.append(Outcome(dead[i], case.width - min(kept, default=case.width), sliced, reasons, worst[i]))
    return found


@functools.cache
def group_of(cases: tuple[OpCase, ...]) -> Group:
    return Group(cases)


@functools.cache
def outcomes(cases: tuple[OpCase, ...], mode: str, target: str) -> list[Outcome | Exception]:
    """One row a case; where the model of all of them fails, every case stands on its own."""
    try:
        group = group_of(cases)
        group.model.load_state_dict(group.fresh)
        dead = [silence(b, c, mode) for b, c in zip(group.model.branches, cases, strict=True)]
        return outcome_of(group, group.compact(target), dead)
    except Exception as error:
        return [error] if len(cases) == 1 else [outcomes((c,), mode, target)[0] for c in cases]


def _places() -> dict[OpCase, tuple[tuple[OpCase, ...], int]]:
    """Which model a case is in, and where. Sizes written into a forward can only follow in a graph."""
    places = {}
    for module in (True, False):
        mine = [c for c in CASES if c.module == module]
        for start in range(0, len(mine), SIZE):
            chunk = tuple(mine[start : start + SIZE])
            places.update({case: (chunk, i) for i, case in enumerate(chunk)})
    return places


PLACES = _places()


def outcome(case: OpCase, mode: str, target: str = "") -> Outcome:
    cases, i = PLACES[case]
    found = outcomes(cases, mode, target or ("module" if case.module else "graph"))[i]
    if isinstance(found, Exception):
        raise found
    return found


each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@each_case
def test_function_is_unchanged(case):
    """Whichever units are zero, another constant or unread: what is removed was exactly nothing."""
    worst = {mode: outcome(case, mode).worst for mode in MODES}
    if case.module:
        worst["mixed, as a graph"] = outcome(case, "mixed", "graph").worst
    assert {mode: gap for mode, gap in worst.items() if gap > 1e-10} == {}


@each_case
def test_units_leave_or_stay_as_the_table_says(case):
    if case.expect in ("passes", "hides"):
        found = outcome(case, "zero" if case.expect == "passes" else "unread")
        assert found.left == len(found.dead) > 0, found.reasons
    if case.expect == "fixes":
        for mode in MODES:
            found = outcome(case, mode)
            assert found.sliced == []
            assert found.reasons
            assert all(found.reasons)


def same_in_every_mode(seeds: range) -> dict[str, float]:
    """The chains that are not the same function afterwards; one that only a graph can carry is compacted as a graph."""
    wrong = {}
    cases = tuple(chain(seed) for seed in seeds)
    for mode in MODES:
        for case, found in zip(cases, outcomes(cases, mode, "graph"), strict=True):
            if isinstance(found, Exception):
                raise found
            if not found.worst <= 1e-9:
                wrong[f"{case.note} {mode}: {case.op(6).notes}"] = found.worst
    return wrong


def test_chains_of_operations():
    assert same_in_every_mode(range(20)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("start", range(20, 520, 20))
def test_many_chains_of_operations(start):
    assert same_in_every_mode(range(start, start + 20)) == {}


@pytest.mark.slow
@each_case
def test_public_calls(case):
    """Every case on its own, exported for each target as users do, with free input sizes, and verified."""
    for seed, mode in enumerate(MODES):
        torch.manual_seed(seed)
        group = Group((case,))
        silence(group.model.branches[0], case, mode)
        for target in ("module", "graph"):
            try:
                small = dg.compact(group.model, (group.inputs[0],), target=target)
            except dg.CompactionError:
                if case.module or target == "graph":
                    raise
                continue  # a size is written into the forward: refused, never wrong
            found = outcome_of(group, small, [set()])[0]
            assert isinstance(found, Outcome)
            assert found.worst <= 1e-10


def full(name: str) -> str:
    return name if "::" in name else f"aten::{name}"


def test_the_table_covers_every_rule():
    listed = {full(n) for c in CASES for n in c.name.split()} | {full(n) for n in ABSENT}
    assert RULES.keys() - listed == set()
    assert not ABSENT.keys() & {n for c in CASES for n in c.name.split()}


def test_every_operation_of_the_table_reaches_its_rule():
    """Each is in a decomposed graph under its own name, or the table says under which other."""
    reached: set[str] = set()
    missed = []
    sizes = tuple(c for c in CASES if c.name.startswith("sym_"))  # sizes are numbers unless they are free
    chunks = [group_of(cases) for cases in dict.fromkeys(chunk for chunk, _ in PLACES.values())]
    for group in [*chunks, Group(sizes, free=True)]:
        for case, found in zip(group.cases, group.operations(), strict=True):
            reached |= found
            if case in sizes and group in chunks:
                continue
            for name in case.name.split():
                became = DECOMPOSED.get(name, name)
                if full(name) not in found and became and full(became) not in found:
                    missed.append((case.id, name, found))
    assert missed == []
    assert {full(n) for n in DECOMPOSED} & reached <= {full(n) for n in ("sub", "to")}
    assert RULES.keys() - reached == {full(n) for n in [*ABSENT, *DECOMPOSED]} & RULES.keys()
