"""Which models does ``compact`` handle, exactly? Every family and task of the zoo, both targets, both precisions.

    python -m benchmarks.coverage [family ...] [--target module|graph|both] [--dtype float32|float64|both]

A task zeroes 30 % of the units of a kind. The compact model must compute what the zeroed full model computes: on the
example inputs, on other values, on another batch size and, for token inputs, on another length. How many parameters
must be gone says the zoo's oracle, which knows nothing of the engine. Results are kept family by family in
``results/coverage.json``; a run of some families replaces theirs. ``docs/coverage.md`` is rendered from the whole.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import dgating as dg
from benchmarks._common import RESULTS, environment, store
from benchmarks.zoo import FAMILIES, PLAIN, text, vision
from benchmarks.zoo._check import forgetful, fresh, run
from benchmarks.zoo._family import Family, Inputs
from benchmarks.zoo._zero import Marks
from dgating.files import write_text

SHARE = 0.3
VERDICTS = ("exact", "exact, more gone", "none to remove", "kept", "refused", "WRONG", "does not run")
LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
TARGETS, DTYPES = ("module", "graph"), {"float32": torch.float32, "float64": torch.float64}


def cast(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    return pytree.tree_map(lambda x: x.to(dtype) if x.is_floating_point() else x, inputs)


def other_inputs(inputs: Inputs) -> dict[str, Inputs]:
    """The examples, other values, a batch with one more than the example's and, if there are tokens, fewer of them."""
    kinds = {x.dtype for x in pytree.tree_leaves(inputs) if x.is_floating_point()}
    values = cast(fresh(inputs, seed=5), *kinds or (torch.float32,))
    larger = pytree.tree_map(lambda x, y: torch.cat([x, y])[: len(x) + 1], inputs, values)
    many = {"example": inputs, "values": values, "batch": larger}
    if any(is_text(x) for x in pytree.tree_leaves(inputs)):
        many["length"] = pytree.tree_map(lambda x: x[:, :-2] if is_text(x) else x, values)
    return many


def is_text(x: Tensor) -> bool:
    return x.ndim == 2 and not x.is_floating_point()


def gap(one: list[Tensor], two: list[Tensor]) -> float:
    """Largest difference of any output, in float64; infinite where shapes, numbers of outputs or integers differ."""
    if [x.shape for x in one] != [y.shape for y in two] or not all(bool(y.isfinite().all()) for y in two):
        return float("inf")
    return max(float((x.double() - y.double()).abs().max()) for x, y in zip(one, two, strict=True))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Clock:
    """Processor seconds spent in ``torch.export.export`` while it is entered; others may use the machine, too."""

    def __enter__(self) -> Clock:
        self.seconds, self.inner = 0.0, torch.export.export
        torch.export.export = self.call  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        torch.export.export = self.inner

    def call(self, *args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return self.inner(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - start


class Inside(TorchDispatchMode):
    """Which dtypes a model computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.dtypes |= {x.dtype for x in pytree.tree_leaves(out) if isinstance(x, Tensor)}
        return out


def measure(family: Family, task: str, target: str, dtype: torch.dtype, verify: bool = True) -> dict[str, Any]:
    """Zero, compact, compare, count.

    Returns:
        Parameters before, gone and expected to be; processor seconds; the differences; and the verdict, one of

        * ``exact``: the same function, and just what the oracle says is gone;
        * ``exact, more gone``;
        * ``none to remove``: the oracle says that no slicing is exact here, and nothing was removed;
        * ``kept``: the same function, but less is gone than the oracle says;
        * ``refused``: :class:`CompactionError`, nothing was returned;
        * ``WRONG``: another function, or an error of another kind;
        * ``does not run``: the full model does not, in this precision.

        A float64 model that computes in float32 somewhere inside is held to the limit of float32.
    """
    model = family.build()
    marks, units = family.tasks[task].apply(model, torch.Generator().manual_seed(0), SHARE)
    expected = marks.params() if family.tasks[task].exact else 0
    model = model.to(dtype)
    inputs = cast(family.inputs(), dtype)
    row: dict[str, Any] = {"parameters": parameters(model), "units": units, "expected": expected}
    with Inside() as inside:
        try:
            run(model, inputs)
        except Exception as error:
            return row | {"verdict": "does not run", "why": first_line(error)}
    if rounds := dtype == torch.float64 and torch.float32 in inside.dtypes:
        row["float32_inside"] = True
    forgetful(model)
    start = time.process_time()
    with Clock() as export:
        try:
            small = dg.compact(model, inputs, target=target, verify=verify)  # type: ignore[arg-type]
        except dg.CompactionError as error:
            return row | {"verdict": "refused", "why": first_line(error)}
        except Exception as error:
            return row | {"verdict": "WRONG", "why": first_line(error)}
    row |= {"seconds": round(time.process_time() - start, 3), "seconds_export": round(export.seconds, 3)}
    row["gone"] = row["parameters"] - parameters(small)
    row |= compare(model, small, inputs, target)
    if (worst := row.pop("worst")) > LIMITS[torch.float32 if rounds else dtype]:
        return row | {"verdict": "WRONG", "why": row.pop("raised", f"outputs differ by {worst:.1e}")}
    if row["gone"] > expected:
        return row | {"verdict": "exact, more gone"}
    if row["gone"] == expected > 0:
        return row | {"verdict": "exact"}
    if not expected:
        return row | {"verdict": "none to remove", "why": family.tasks[task].note}
    return row | {"verdict": "kept", "why": reason(model, marks, small)}


def compare(model: nn.Module, small: nn.Module, inputs: Inputs, target: str) -> dict[str, Any]:
    """Differences by kind of input, the worst of them, and sizes of inputs on which the compact model does not run.

    A graph may hold sizes of the example (``torch.export`` decides): then it has to raise on others, not to differ.
    """
    found: dict[str, float | None] = {}
    raised = ""
    model = forgetful(model)
    for kind, some in other_inputs(inputs).items():
        try:
            full = run(model, some)
        except Exception:
            if kind != "length":  # a model may insist on a length
                raise
            continue
        try:
            found[kind] = gap(full, run(small, some))
        except Exception as error:
            found[kind] = None if target == "graph" and kind in ("batch", "length") else float("inf")
            raised = raised or f"{kind}: {first_line(error)}"
    worst = max(x for x in found.values() if x is not None)
    row: dict[str, Any] = {
        "worst": worst,
        "gap": {k: x if x is None or x < float("inf") else "inf" for k, x in found.items()},
    }
    return row | ({"raised": raised} if raised else {})


def reason(model: nn.Module, marks: Marks, small: nn.Module) -> str:
    """Why the plan keeps units of the weights that were zeroed: operations without a rule, else what holds most."""
    plan: dg.CompactionPlan = small.compaction  # type: ignore[assignment]
    if plan.unknown:
        return "no rule for " + ", ".join(plan.unknown)
    touched = {name for name, param in model.named_parameters() if param in marks.zero}
    counts: collections.Counter[str] = collections.Counter(why for name, _, why in plan.fixed if name in touched)
    for units in plan.units:
        if touched & {name for name, _ in units.sites}:
            counts.update(units.kept_because)
    return counts.most_common(1)[0][0] if counts else "no reason given"


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:400]


def engine() -> str:
    """A short hash of the library's source: rows with the same one come from the same engine."""
    digest = hashlib.sha256()
    for path in sorted(Path(dg.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The union of two nested dicts, the new one's leaves first; a row of results counts as a leaf."""
    if "verdict" in new:
        return new
    return old | {k: merge(old.get(k, {}), v) if isinstance(v, dict) else v for k, v in new.items()}


# --- the page ---------------------------------------------------------------------------------------------------------

HEAD = """# Coverage

*Generated by `python -m benchmarks.coverage` (torch {torch}, one thread of {cpu}, {date}); do not edit.*

What `dg.compact` removes from {families} small models, by kind of unit. Every weight is redrawn at random, so that
nothing is zero by initialisation; then 30 % of the units of one kind are set to zero: their producing slices, or for
single query heads the slices that read them. The compact model is compared with the zeroed full model, in float32
(largest difference allowed: 1e-5) and, both converted before compaction, in float64 (1e-10): on the example inputs, on
other values, on a batch that is larger by one and, for tokens, on fewer of them. Models that compute in float32 inside
even when they are converted to float64 (softmax, norms) are held to 1e-5 there. How many parameters have to go says an
oracle that is written for each model by hand and knows nothing of the engine.

* **exact**: the same function, and exactly the parameters of the oracle are gone.
* **exact, more gone**: the same function, and more could go than the oracle knew.
* **kept**: the same function, but less is gone; the reason is below.
* **none to remove**: no slicing removes these units exactly, and none was removed.
* **refused**: `CompactionError` and no model.
* **WRONG**: another function, or another error.
* **does not run**: the full model itself does not run in float64.

*module* keeps the classes of the model, *graph* rewrites the exported graph. A graph may hold sizes of the example
inputs; it then raises on others, which is marked *. Times are processor seconds of one thread.

{counts}
"""
GROUPS = (
    ("Transformers library, listed", [f.name for f in (*text.LISTED, *vision.LISTED)]),
    ("Transformers library, not tuned for", None),
    ("Plain PyTorch", [f.name for f in PLAIN]),
)
COLUMNS = (
    *("family", "task", "module", "graph", "parameters", "expected gone", "gone"),
    *("float32", "float64", "s, module", "s, graph"),
)


def line(row: dict[str, Any]) -> str:
    """A row of results as one line of text."""
    gaps = " ".join(
        f"{k} {x if isinstance(x, str) or x is None else f'{x:.0e}'}" for k, x in row.get("gap", {}).items()
    )
    gone = f"{row.get('gone', '-')} of {row['expected']}"
    return f"{row['verdict']:16} {gone:16} {row.get('seconds', 0):5.2f} s  {gaps}  {row.get('why', '')}"


def table(head: tuple[str, ...], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(x).replace("|", "\\|") for x in cells) + " |" for cells in lines)


def both(kinds: dict[str, Any]) -> str:
    """The verdict of a target in both precisions, as one cell."""
    found = list(dict.fromkeys(row["verdict"] for row in kinds.values()))
    fixed = any(x is None for row in kinds.values() for x in row.get("gap", {}).values())
    return " / ".join(found) + (" *" if fixed else "")


def largest(targets: dict[str, Any], dtype: str) -> str:
    found = [x for kinds in targets.values() for x in kinds.get(dtype, {}).get("gap", {}).values() if x is not None]
    return f"{max(map(float, found)):.0e}" if found else ""


def page_row(name: str, task: str, targets: dict[str, Any]) -> list[Any]:
    rows = [row for kinds in targets.values() for row in kinds.values()]
    gone = dict.fromkeys(f"{row['gone']:,}" for row in rows if "gone" in row)
    seconds = [targets.get(t, {}).get("float32", {}).get("seconds", "") for t in TARGETS]
    cells = [name, task, *(both(targets.get(t, {})) for t in TARGETS), f"{rows[0]['parameters']:,}"]
    cells += [f"{rows[0]['expected']:,}", " / ".join(gone), *(largest(targets, d) for d in DTYPES)]
    return cells + [f"{s:.1f}" if s else "" for s in seconds]


def render(stored: dict[str, Any]) -> Path:
    """Write ``docs/coverage.md``."""
    families = {name: stored["families"][name] for name in FAMILIES if name in stored["families"]}
    flat = [
        (name, task, target, dtype, row)
        for name, tasks in families.items()
        for task, targets in tasks.items()
        for target, kinds in sorted(targets.items(), reverse=True)
        for dtype, row in sorted(kinds.items())
    ]
    counts = collections.Counter((target, dtype, row["verdict"]) for _, _, target, dtype, row in flat)
    names = [v for v in VERDICTS if any(verdict == v for _, _, verdict in counts)]
    sides = list(dict.fromkeys((target, dtype) for target, dtype, _ in sorted(counts, reverse=True)))
    summary = table(("target", "precision", *names), [[*side, *(counts[(*side, v)] for v in names)] for side in sides])
    text_ = HEAD.format(**stored["environment"], families=len(families), counts=summary)
    grouped = {name for _, members in GROUPS if members for name in members}
    for title, members in GROUPS:
        mine = [n for n in families if (n in members if members else n not in grouped)]
        rows = [page_row(n, task, targets) for n in mine for task, targets in families[n].items()]
        text_ += f"\n## {title}\n\n{table(COLUMNS, rows)}\n" if rows else ""
    why: dict[tuple[str, ...], list[str]] = {}
    for name, task, target, dtype, row in flat:
        if "why" in row:
            why.setdefault((name, task, row["verdict"], row["why"]), []).append(f"{target} {dtype}")
    rows = [[*key[:3], ", ".join(sorted({x.split()[0] for x in where})), key[3]] for key, where in why.items()]
    text_ += "\n## What is kept or refused, and why\n\n" + table(
        ("family", "task", "verdict", "target", "reason"), rows
    )
    path = Path(__file__).parents[1] / "docs" / "coverage.md"
    write_text(path, text_ + "\n")
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="family", help="default: all")
    parser.add_argument("--target", choices=[*TARGETS, "both"], default="both")
    parser.add_argument("--dtype", choices=[*DTYPES, "both"], default="both")
    parser.add_argument("--no-verify", action="store_true", help="without compact's own check; nothing is stored")
    parser.add_argument("--render", action="store_true", help="only write the page again")
    arguments = parser.parse_args()
    targets = TARGETS if arguments.target == "both" else (arguments.target,)
    dtypes = list(DTYPES) if arguments.dtype == "both" else [arguments.dtype]
    path = RESULTS / "coverage.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"families": {}}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    source = engine()
    verdicts: collections.Counter[str] = collections.Counter()
    for name in [] if arguments.render else arguments.families or FAMILIES:
        rows: dict[str, Any] = {}
        for task in FAMILIES[name].tasks:
            for target in targets:
                for dtype in dtypes:
                    row = measure(FAMILIES[name], task, target, DTYPES[dtype], not arguments.no_verify)
                    rows.setdefault(task, {}).setdefault(target, {})[dtype] = row | {"engine": source}
                    verdicts[row["verdict"]] += 1
                    print(f"{name:20} {task:12} {target:7} {dtype:8}", line(row), flush=True)
        if not arguments.no_verify:
            stored = {"environment": environment(), "share": SHARE, "families": stored["families"]}
            stored["families"] = merge(stored["families"], {name: rows})
            store("coverage", stored)
    print(*(f"{n} {verdict}" for verdict, n in verdicts.most_common()), sep=", ")
    if not arguments.no_verify:
        print(render(stored))
    return int(verdicts["WRONG"] > 0)


if __name__ == "__main__":
    sys.exit(main())
