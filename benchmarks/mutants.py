"""Change the core a little, hundreds of times, and ask each time whether a test notices.

``python -m benchmarks.mutants`` (an hour on one core; it goes on where it was stopped), ``--n 5`` for a few a area.

A run of every test under instrumented sources tells which tests call which functions. A mutant is then given to the
tests that call the function it is in, those that call the fewest functions first, until one fails; each in a process of
its own, which imports the changed source through a hook. No file is written. A test that runs out of time has noticed,
too. The sample follows from the seed and from the mutants themselves: where the source stays, so does its sample.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from benchmarks._mutate import Mutant, mutants

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "dgating"


def _files(folder: str, *names: str) -> list[str]:
    return [f"{folder}/{name}.py" for name in names]


AREAS = {
    "gating": _files("gating", "_gate", "_apply", "_partition", "_gated_tensors", "_transaction", "_zeros"),
    "objective": [
        *_files("gating", "_trial", "_optimizer_state", "_migrate"),
        *_files("training", "_objective", "_regrowth"),
        *_files("maths", "_penalty"),
    ],
    "monitor": [
        *_files("training", "_monitor", "_bounds", "_condition", "_gradients", "_reader"),
        *_files("training", "_optimizer_settings", "_strengths", "_monitor_state", "_penalty_hook"),
        *_files("maths", "_certificate"),
    ],
    "compaction": [
        *_files("compaction", "_verify", "_plan", "_modules", "_optimizer", "_compact"),
        *_files("structure", "_analyse", "_solve", "_factors"),
    ],
    "rules": sorted(f"structure/rules/{path.name}" for path in (SOURCE / "structure" / "rules").glob("*.py")),
}
TESTS = (
    *("partition", "gating", "groups", "traps", "refused_calls", "select", "config", "training", "theory"),
    *("interrupts", "inference_mode", "memory_format", "penalty", "penalty_gradient", "optimizer_decay"),
    *("wrapped_optimizers", "migration", "no_sync", "certificate", "monitor", "monitor_attacks"),
    *(
        "monitor_by_hand",
        "objective_by_hand",
        "gating_by_hand",
        "compaction_by_hand",
        "rules_by_hand",
        "report",
        "diverged",
        "structure_labels",
        "kept",
        "inplace",
    ),
    *("discovery", "compaction_refused", "compaction_sizes", "optimizer_slicing", "save_compact", "verification"),
)

BATCH = 3
QUICK = 0.1  # seconds: tests that take less are all run
RULES = "tests/test_structure_rules.py"

# Changes that change nothing, by file and by the two texts, each with the reason.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("gating/_trial.py", "LR, DECAY, STEPS = (0.125, 0.5, 3)", "LR, DECAY, STEPS = (0.125, 0.5, 4)"): (
        "the length of the trial is a choice: one more step shows the same"
    ),
    (
        "gating/_gated_tensors.py",
        "return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)",
        "return parts[-1] if len(parts) == 1 else torch.stack(parts).sum(0)",
    ): "the first of one is the last of one",
    (
        "gating/_partition.py",
        "rest_first = int(rest[0]) < int(gated[0])",
        "rest_first = int(rest[0]) <= int(gated[0])",
    ): "no entry is both gated and not",
    (
        "gating/_partition.py",
        "repeat = math.prod(self.shape) // max(flat.numel(), 1)",
        "repeat = math.prod(self.shape) // max(flat.numel(), 0)",
    ): "labels without an entry are refused",
    (
        "compaction/_verify.py",
        "small.ndim != full.ndim or len(axes) != 1 or small.shape[axes[0]] > full.shape[axes[0]]",
        "small.ndim != full.ndim or len(axes) != 1 or small.shape[axes[0]] > full.shape[axes[-1]]",
    ): "there is one axis at that place",
    (
        "structure/rules/convolution.py",
        "wide = np.repeat(ids, rows, axis=0) if g > 1 else ids",
        "wide = np.repeat(ids, rows, axis=0) if g >= 1 else ids",
    ): "a saving: labels that do not change along an axis stand for all of it",
    (
        "structure/_solve.py",
        "if not open_.any():\n    return (self.inputs[open_], '')",
        "if False:\n    return (self.inputs[open_], '')",
    ): "a saving: nothing is brought to life by a product that has no open input",
    (
        "structure/rules/convolution.py",
        "first = e.along(Info(w.shape, alone or w.factors), 0, reason).reshape(g, -1)",
        "first = e.along(Info(w.shape, alone or w.factors), 0, reason).reshape(g, -2)",
    ): "numpy works out any size below zero",
    (
        "structure/_factors.py",
        "len(met) > 1 or (met and met[0].route is not f.route and f.route and met[0].route)",
        "len(met) > 1 or (met and met[0].route is not f.route and f.route and met[-1].route)",
    ): "the first of one is the last of one",
    ("compaction/_modules.py", "alike[kind] = {_place(c, module) for c in chosen}", "pass"): (
        "a saving: every layer is tried out instead of the first of its kind"
    ),
    (
        "structure/rules/indexing.py",
        "rows.indices is not None and rows.indices.numel() <= LONGEST_LIST",
        "rows.indices is not None and rows.indices.numel() < LONGEST_LIST",
    ): "the longest list that is followed is a choice",
    (
        "structure/rules/creation.py",
        "factors = [single(e.labels.fresh((n,)), a, len(out)) for a, n in enumerate(out)"
        " if 1 < n <= LARGEST_FILL and e.loose]",
        "factors = [single(e.labels.fresh((n,)), a, len(out)) for a, n in enumerate(out)"
        " if 1 < n < LARGEST_FILL and e.loose]",
    ): "the largest tensor that is followed is a choice",
    (
        "compaction/_compact.py",
        "named = dict(model.named_parameters(remove_duplicate=False))"
        " | dict(model.named_buffers(remove_duplicate=False))",
        "named = dict(model.named_parameters(remove_duplicate=True))"
        " | dict(model.named_buffers(remove_duplicate=False))",
    ): "a plan has tied tensors under their first name",
}


def candidates(file: str) -> list[Mutant]:
    """Every mutant of a file, in a tree of its own."""
    return mutants(ast.parse((SOURCE / file).read_text(encoding="utf-8")))


def sample(area: str, n: int, seed: int) -> list[tuple[str, str]]:
    """``n`` mutants of an area, as file and key: the first in an order that does not know of the others."""
    every = [(file, m.key(file)) for file in AREAS[area] for m in candidates(file)]
    return sorted(every, key=lambda x: hashlib.sha256(f"{seed} {x[1]}".encode()).digest())[:n]


class Hook(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports modules of the library from the trees that it is given; ``_seen`` is a name in each of them."""

    def __init__(self, trees: dict[str, ast.Module], seen: set[str]) -> None:
        self.files = {_module(file): (SOURCE / file, tree) for file, tree in trees.items()}
        self.seen = seen

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> Any:
        if fullname not in self.files:
            return None
        file = self.files[fullname][0]
        inside = [str(file.parent)] if file.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(fullname, file, loader=self, submodule_search_locations=inside)

    def get_filename(self, name: str | None = None) -> str:
        return str(self.files[name or ""][0])

    def get_code(self, fullname: str) -> CodeType:
        file, tree = self.files[fullname]
        return compile(tree, str(file), "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["_seen"] = self.seen
        exec(self.get_code(module.__name__), module.__dict__)


def _module(file: str) -> str:
    return "dgating." + file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def instrumented(file: str) -> ast.Module:
    """The tree of a file in which every function tells that it was called."""
    tree = ast.parse((SOURCE / file).read_text(encoding="utf-8"))

    def visit(node: ast.AST, scope: str) -> None:
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            inner = f"{scope}.{child.name}".lstrip(".") if named else scope  # type: ignore[attr-defined]
            visit(child, inner)
            if isinstance(child, ast.FunctionDef):
                at = 1 if ast.get_docstring(child) is not None else 0
                child.body[at:at] = ast.parse(f"_seen.add({f'{file} {inner}'!r})").body

    visit(tree, "")
    return ast.fix_missing_locations(tree)


def in_child(work: Callable[[], Any], seconds: float) -> Any:
    """What a function returns in a process of its own, as JSON; ``None`` when it takes longer or ends early."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.close(read)
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            answer = json.dumps(work()).encode()
            with os.fdopen(write, "wb") as out:
                out.write(answer)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    answer, end = b"", time.monotonic() + seconds
    with os.fdopen(read, "rb", buffering=0) as source:
        while select.select([source], [], [], max(0.0, end - time.monotonic()))[0]:
            piece = source.read(1 << 16)
            if not piece:
                break
            answer += piece
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # a group of its own: the child, and what it has started
    os.waitpid(pid, 0)
    try:
        return json.loads(answer)
    except ValueError:
        return None


def pytest_main(files: Iterable[str], plugin: object) -> int:
    """Run test files with one more plugin, in the present process."""
    import pytest

    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "--rootdir", str(ROOT)]
    options += ["-W", "ignore:Module already imported"]  # hypothesis, by preload()
    if not isinstance(plugin, Chosen):
        options.remove("-x")
    return int(pytest.main([*options, *files], plugins=[plugin]))


class Calls:
    """A plugin that notes which functions each test calls, and how long it takes."""

    def __init__(self, seen: set[str]) -> None:
        self.seen = seen
        self.tests: list[dict[str, Any]] = []
        self.passed: set[str] = set()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.seen.clear()
        self.start = time.perf_counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.passed.add(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        seconds = round(time.perf_counter() - self.start, 4)
        if nodeid in self.passed:
            self.tests.append({"test": nodeid, "seconds": seconds, "calls": sorted(self.seen)})


class Chosen:
    """A plugin that runs the chosen tests in their order, and keeps the first failure."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.rank = {test: i for i, test in enumerate(tests)}
        self.failed: str | None = None

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for module in {item.module for item in items if item.path == ROOT / RULES}:
            module.SIZE = 1  # every case in a model of its own: an export of all is too much for a few of them
            module.PLACES = module._places()
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = f"import of {report.nodeid}"

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid


def called(file: str) -> list[dict[str, Any]] | None:
    """Which functions of the library each test of a file calls."""

    def work() -> list[dict[str, Any]]:
        seen: set[str] = set()
        sys.meta_path.insert(0, Hook({f: instrumented(f) for files in AREAS.values() for f in files}, seen))
        calls = Calls(seen)
        pytest_main([file], calls)
        return calls.tests

    return in_child(work, 900)


def cases_of_rules() -> list[dict[str, Any]] | None:
    """Which functions each case of the op rules calls when it is alone: most share one model when all are run."""

    def work() -> list[dict[str, Any]]:
        seen: set[str] = set()
        sys.meta_path.insert(0, Hook({f: instrumented(f) for files in AREAS.values() for f in files}, seen))
        from tests import test_structure_rules as contract

        rows = []
        for case in contract.CASES:
            seen.clear()
            start = time.perf_counter()
            for mode in contract.MODES:
                contract.outcomes((case,), mode, "module" if case.module else "graph")
            seconds = round((time.perf_counter() - start) / 2, 4)  # both tests share what the first finds
            for test in ("test_function_is_unchanged", "test_units_leave_or_stay_as_the_table_says"):
                rows.append({"test": f"{RULES}::{test}[{case.id}]", "seconds": seconds, "calls": sorted(seen)})
        return rows

    return in_child(work, 900)


def relevant(tests: list[dict[str, Any]], file: str, scope: str) -> list[dict[str, Any]]:
    """The tests that call a function; of what is in none (constants), those that call any of its file."""
    where = f"{file} {scope}"
    found = [t for t in tests if any(c == where or c.startswith(f"{where}.") for c in t["calls"])]
    return found or [t for t in tests if any(c.startswith(f"{file} ") for c in t["calls"])]


def in_order(tests: Iterable[dict[str, Any]], seconds: float, of_rules: bool) -> list[str]:
    """Quick tests, then the first case of each test, then the second, and so on, for so many seconds in all.

    Those that call few functions come first: what they say, they say of these. For a mutant of an op rule every case
    of the rules is a test of its own, for others they are cases of one.
    """
    cases: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for test in tests:
        name = test["test"]
        cases[name if of_rules and name.startswith(RULES) else name.split("[")[0]].append(test)
    ranked = []
    for of_one in cases.values():
        of_one.sort(key=lambda t: (len(t["calls"]), t["seconds"]))
        for rank, t in enumerate(of_one):
            quick = t["seconds"] <= QUICK and (of_rules or not t["test"].startswith(RULES))
            turn = 0 if quick else 1 + rank
            ranked.append((turn, len(t["calls"]), t["seconds"], t["test"]))
    out, spent = [], 0.0
    for _, _, cost, test in sorted(ranked):
        if spent + cost <= seconds:
            spent += cost
            out.append(test)
    return out


def _batches(tests: Sequence[str]) -> list[list[str]]:
    """Test files, a few at a time in the order of their first tests: collecting them all takes longer than most."""
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    return [files[i : i + BATCH] for i in range(0, len(files), BATCH)]


def judged(file: str, mutant: Mutant, tests: list[str], seconds: float) -> dict[str, Any]:
    """Give a mutant to the tests."""
    row = {"key": mutant.key(file), "file": file, "line": mutant.line, "scope": mutant.scope}
    row |= {"operator": mutant.operator, "before": mutant.before, "after": mutant.after, "number": mutant.number}
    reason = EQUIVALENT.get((file, mutant.before, mutant.after))
    if reason is not None:
        return row | {"verdict": "equivalent", "by": reason}

    def work() -> dict[str, Any]:
        tree = ast.parse((SOURCE / file).read_text(encoding="utf-8"))
        same = next(m for m in mutants(tree) if m.key(file) == row["key"])
        same.edit()
        sys.meta_path.insert(0, Hook({file: tree}, set()))
        for files in _batches(tests):
            chosen = Chosen(tests)
            code = pytest_main(files, chosen)
            if chosen.failed or code:
                return {"by": chosen.failed, "code": code}
        return {"by": None, "code": 0}

    start = time.monotonic()
    found = {"by": None, "code": 0} if not tests else in_child(work, 60 + 2 * seconds)
    row |= {"tests": len(tests), "seconds": round(time.monotonic() - start, 1)}
    if found is None:
        return row | {"verdict": "killed", "by": "out of time or out of memory"}
    if found["by"] is None and found["code"]:
        return row | {"verdict": "killed", "by": "the tests could not start"}
    return row | {"verdict": "survived" if found["by"] is None else "killed", "by": found["by"]}


def preload() -> None:
    """Import what every child needs, but not the library."""
    for name in ("numpy", "torch", "torch._dynamo", "torch.export", "torch.fx.experimental.proxy_tensor"):
        importlib.import_module(name)
    for name in ("pytest", "_pytest.doctest", "hypothesis", "hypothesis.strategies", "safetensors.torch"):
        importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    assert not any(name.split(".")[0] == "dgating" for name in sys.modules)


def read_map(folder: Path) -> list[dict[str, Any]]:
    """The tests and what they call, kept in a folder, one file for each test file as it is now."""
    tests = []
    for name in (*TESTS, "rule_cases"):
        file = ROOT / "tests" / (f"{name}.py" if name == "rule_cases" else f"test_{name}.py")
        kept = folder / f"calls_{name}_{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.json"
        if not kept.is_file():
            start = time.monotonic()
            found = cases_of_rules() if name == "rule_cases" else called(f"tests/{file.name}")
            print(f"{file.name}: {len(found or [])} tests in {time.monotonic() - start:.0f} s", flush=True)
            if not found:
                raise RuntimeError(f"{file.name}: expected tests that pass, found none.")
            kept.write_text(json.dumps(found), encoding="utf-8")
        tests += json.loads(kept.read_text(encoding="utf-8"))
    return tests


def store_rows(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Write the result, in a process of its own, which may import the library."""

    def work() -> None:
        from benchmarks._common import environment, store

        areas = {}
        for area, files in AREAS.items():
            counted = Counter(row["verdict"] for row in rows if row["file"] in files)
            judged = counted["killed"] + counted["survived"]
            share = round(counted["killed"] / judged, 3) if judged else None
            areas[area] = dict(counted) | {"share killed": share}
        settings = {"n": options.n, "seed": options.seed, "seconds": options.seconds}
        store("mutants", {"environment": environment(), "settings": settings, "areas": areas, "mutants": rows})

    in_child(work, 120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--areas", nargs="*", default=list(AREAS), choices=list(AREAS))
    parser.add_argument("--n", type=int, default=40, help="mutants of each area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="time of the tests that a mutant is given to")
    parser.add_argument("--only", nargs="*", help="keys of single mutants, judged again")
    parser.add_argument("--again", action="store_true", help="judge again those that have survived")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "dgating-mutants")
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = [str(ROOT / "src"), str(ROOT)]
    options.cache.mkdir(exist_ok=True)
    preload()
    tests = read_map(options.cache)
    result = ROOT / "benchmarks" / "results" / "mutants.json"
    rows = json.loads(result.read_text(encoding="utf-8"))["mutants"] if result.is_file() else []
    present = {m.key(file) for files in AREAS.values() for file in files for m in candidates(file)}
    known = {row["key"]: row for row in rows if row["key"] in present}
    again = {key for key, row in known.items() if options.again and row["verdict"] == "survived"}
    again |= set(options.only or ())
    for area in options.areas:
        wanted = [] if options.only else sample(area, options.n, options.seed)
        wanted += [(f, m.key(f)) for f in AREAS[area] for m in candidates(f) if m.key(f) in again]
        for file, key in wanted:
            if key in known and key not in again:
                continue
            again.discard(key)
            mutant = next(m for m in candidates(file) if m.key(file) == key)
            those = relevant(tests, file, mutant.scope)
            row = judged(
                file, mutant, in_order(those, options.seconds, file.startswith("structure/rules")), options.seconds
            )
            print(f"{key} {row['verdict']:10} {file}:{mutant.line} {mutant.operator} | {row['by']}", flush=True)
            if row["verdict"] == "survived":
                print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
            known[key] = row
            store_rows(list(known.values()), options)


if __name__ == "__main__":
    main()
