"""Check the zoo: ``python -m benchmarks.zoo [family ...]`` builds, runs, zeroes and exports every family."""

from __future__ import annotations

import collections
import sys
import time

import torch

from benchmarks.zoo import FAMILIES
from benchmarks.zoo._check import check_task, exported, run
from benchmarks.zoo._family import Family


def check(family: Family, ops: collections.Counter[str]) -> list[str]:
    """Lines of the report about one family: the model, then each task."""
    begin = time.perf_counter()
    model = family.build()
    first, second = run(model, family.inputs()), run(family.build(), family.inputs())
    same = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    took = time.perf_counter()
    names, error = exported(model, family.inputs())
    ops.update(names)
    params = sum(p.numel() for p in model.parameters())
    wrong = ("" if same else "NOT DETERMINISTIC ") + ("" if error < 1e-4 else f"export FAILED by {error:.1e} ")
    head = f"{family.name:22}{params:9} parameters{len(names):6} ops  {wrong}"
    lines = [head + f"export {time.perf_counter() - took:.1f} s"]
    lines += [f"    {name:14}" + check_task(family, task) for name, task in family.tasks.items()]
    lines[0] += f", all {time.perf_counter() - begin:.1f} s"
    return lines


def main() -> int:
    ops: collections.Counter[str] = collections.Counter()
    failed = []
    for name in sys.argv[1:] or FAMILIES:
        try:
            lines = check(FAMILIES[name], ops)
        except Exception as error:
            lines = [f"{name:24}FAILED {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"]
        print("\n".join(lines), flush=True)
        failed += [name] if any("FAILED" in line or "NOT" in line for line in lines) else []
    print(f"\n{len(ops)} ops:", ", ".join(f"{op} {n}" for op, n in sorted(ops.items())))
    print("failed:", failed or "none")
    return bool(failed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
