"""Files that lie: damaged, edited and forged saves of every kind that the library reads, and what becomes of each.

    python -m benchmarks.hostile_saves              # 5,000 files; writes results/hostile_saves.json
    python -m benchmarks.hostile_saves --files 500 --seed 1 --show

Every file is an honest one with one change: a flipped bit, a cut, bytes that were added, another value in the place of
any value of its JSON, tensors that were exchanged, another entry of a safetensors header. Half of the changes of
content are *forged*: their checksum is computed again. A file must be refused by one ``ValueError`` (or
``FileNotFoundError``) of one line, or give the very object that the honest file gives; a forged one may also give
another object. Each format runs in a process of its own, whose peak memory is compared with that after the honest file.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dgating as dg

FILES = 5000
REFUSED, SAME, OTHER, FAULT = "refused", "the honest object", "another object, forged", "FAULT"


# --- honest saves, how each is read, and what is compared ---


@dataclass(frozen=True)
class Format:
    """``save`` fills a folder; ``load`` gives what is compared; ``share`` of all files.

    ``plain``: a configuration without a checksum, to be edited by hand; every change of it counts as forged.
    """

    save: Callable[[Path], object]
    load: Callable[[Path], Any]
    share: float
    plain: bool = False


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Columns(nn.Module):
    """A forward that reads a size from an attribute, so that the file holds one."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.inner, self.outer = 6, nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).view(-1, self.width).sigmoid())


class Literal(nn.Module):
    """A width that is written into the forward, so that the file describes the inputs of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(x).view(-1, 6).sin())


def attributes() -> nn.Sequential:
    return nn.Sequential(Columns(), nn.Linear(4, 3, bias=False))


def rewritten() -> nn.Sequential:
    return nn.Sequential(Literal(), nn.Linear(4, 3))


def compacted(build: Callable[[], nn.Module], *dead: str) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        net = build().eval()
        with torch.no_grad():
            for name in dead:
                net.get_parameter(name)[:2] = 0
        dg.save_compact(dg.compact(net, (torch.randn(3, 4),)), folder / "small.safetensors")

    return save


def state(model: nn.Module) -> Any:
    return (
        [(n, str(t.dtype), t.tolist()) for n, t in model.state_dict().items()],
        str(model),
        vars(model[0]).get("width"),
    )


def loaded(build: Callable[[], nn.Module]) -> Callable[[Path], Any]:
    return lambda folder: state(dg.load_compact(build().eval(), folder / "small.safetensors"))


def save_gates(folder: Path) -> None:
    net = mlp()
    labels = torch.arange(64).view(8, 8) % 5 - 1
    groups = [dg.features(net[0]), dg.by_labels(net[3], labels), dg.whole(net[5], name="last")]
    dg.GateConfig.from_model(dg.gate_(net, groups, depth=4)).save(folder / "gates.json")


def load_gates(folder: Path) -> Any:
    config = dg.GateConfig.load(folder / "gates.json")
    net = config.apply_(mlp())
    return [(n, tuple(p.shape)) for n, p in net.named_parameters()], dg.GateConfig.from_model(net).to_json()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(1))
    return x, x[:, 0] - 2 * x[:, 1]


def save_path(folder: Path) -> None:
    dg.path(nn.Linear(5, 1), rows(), [0.3, 0.6, 2.0], dense_steps=30, steps=30).save(folder / "path.safetensors")


def points(path: dg.RegularizationPath) -> Any:
    return path.depth, path.settings, [repr(p) + repr(p.state) for p in path]


def save_folds(folder: Path) -> None:
    dg.cross_validate_path(nn.Linear(5, 1), rows(), [0.3, 0.6], folds=3, dense_steps=30, steps=30).save(folder)


def load_folds(folder: Path) -> Any:
    found = dg.CrossValidatedPath.load(folder)
    return points(found.path), repr(found.scores), repr(found.n_groups)


def work(seed: int) -> dict[str, np.ndarray]:
    return {"scores": np.random.default_rng(seed).normal(size=4), "n_groups": np.arange(4)}


def run_work(folder: Path) -> Any:
    """The tasks of a killed run: a damaged result is computed again."""
    from dgating.tasks import Task, run_tasks

    found = run_tasks([Task(f"task_{i}", work, (i,)) for i in range(3)], folder=folder, settings={"lam": 1.0})
    return [{name: values.tolist() for name, values in sorted(result.items())} for result in found]


def save_report(folder: Path) -> None:
    from dgating.tables import Feature, Predictor, Reading

    features = (
        Feature("age", "number", False, (41.5,), (), True),
        Feature("plan", "category", True, (), ("basic", "gold", "silver"), False),
    )
    rng = np.random.default_rng(0)
    layers = tuple((rng.normal(size=s), rng.normal(size=s[0])) for s in ((4, 5), (2, 4)))
    one = np.ones(1)
    Predictor(
        "left", ("no", "yes"), features, "relu", layers, rng.normal(size=5), np.ones(5) * 2, one * 0, one, Reading(",")
    ).save(folder)


def load_report(folder: Path) -> Any:
    import pandas as pd

    from dgating.tables import Predictor

    found = Predictor.load(folder)
    table = pd.DataFrame({"age": [30.0, float("nan")], "plan": ["gold", "basic"]})
    made = found.predict(table)[0] if {f.name for f in found.features} == {"age", "plan"} else None
    return repr(found), None if made is None else made.to_csv()


FORMATS = {
    "gates.json": Format(save_gates, load_gates, 0.2, plain=True),
    "compact model": Format(compacted(mlp, "0.weight", "0.bias", "3.weight", "3.bias"), loaded(mlp), 0.25),
    "compact model, attributes and a new bias": Format(
        compacted(attributes, "0.inner.weight"), loaded(attributes), 0.1
    ),
    "compact model, a rewritten graph": Format(compacted(rewritten, "0.inner.weight"), loaded(rewritten), 0.05),
    "path": Format(save_path, lambda f: points(dg.RegularizationPath.load(f / "path.safetensors")), 0.15),
    "cross-validation": Format(save_folds, load_folds, 0.1),
    "folder of a killed run": Format(run_work, run_work, 0.05),
    "report": Format(save_report, load_report, 0.1),
}


# --- changes ---

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, 7, -1, -7, 0.5, -0.0, 1e300, float("nan"), float("inf"), 10**8, 10**9, 10**12, 2**63,
    10**30, 10**400, "", "a", "0", "weight", "float32", "../../x", "__class__", "\x00", "\ud800", "a" * 5000, [], {},
    [0], [1, 2], [[0]], [10**9, 10**9], {"a": 1}, {"": None}, {"items": []},
    {"tensor": [10**6, 10**3], "dtype": "float32"},
)  # fmt: skip
DEEP = ("[" * 200 + "]" * 200, '{"a":' * 200 + "1" + "}" * 200, "[" * 50_000, "1" * 100_000, "1e999")


def split_header(data: bytes) -> tuple[Any, bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: Any, body: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + body


def resealed(data: bytes, end: int) -> bytes:
    """The checksum computed again, by this file's own reading of its rule: over all bytes, its own as zeros."""
    found = re.search(rb'"sha256": ?"([0-9a-f]{64})"', data[:end])
    if found is None:
        return data
    start, stop = found.span(1)
    zero = data[:start] + b"0" * 64 + data[stop:]
    return zero[:start] + hashlib.sha256(zero).hexdigest().encode() + zero[stop:]


def leaves(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value, containers too."""
    found = [where] if where else []
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += leaves(child, (*where, key))
    return found


def edited(value: Any, rng: random.Random) -> str:
    """JSON text with one value replaced, dropped, repeated, exchanged, moved a little or nested."""
    value = copy.deepcopy(value)
    *way, last = rng.choice(leaves(value) or [(0,)])
    place = value
    for key in way:
        place = place[key]
    old = place[last] if isinstance(place, dict) or len(place) > last else None
    how = rng.choice(["value", "value", "drop", "again", "nudge", "swap", "deep", "key"])
    if how == "deep":
        place[last] = "@deep@"
        return json.dumps(value).replace('"@deep@"', rng.choice(DEEP))
    if how == "nudge" and isinstance(old, int | float) and not isinstance(old, bool):
        place[last] = old + rng.choice([-1, 1, 10**6])
    elif how == "drop":
        place.pop(last)
    elif how == "again" and isinstance(place, list):
        place.insert(last, old)
    elif how == "key" and isinstance(place, dict):
        place[rng.choice(["", "a", "weight", "bias", "0.weight", "format"])] = place.pop(last)
    elif how == "swap" and len(place) > 1:
        other = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[last], place[other] = place[other], place[last]
    else:
        place[last] = rng.choice(VALUES)
    return json.dumps(value)


def changed(data: bytes, kind: str, rng: random.Random) -> tuple[bytes, str, bool]:
    """Another content of a file, what was done, and whether it is forged."""
    how = rng.choice(["bit", "bits", "cut", "more", "json", "json", "json", "json", "json", "body"])
    forged = rng.random() < 0.5
    if how in ("bit", "bits"):
        spoiled = bytearray(data)
        for _ in range(1 if how == "bit" else 20):
            spoiled[rng.randrange(len(spoiled))] ^= 1 << rng.randrange(8)
        return bytes(spoiled), how, False
    if how == "cut":
        return data[: rng.randrange(len(data))], how, False
    if how == "more":
        return data + rng.choice([b"\x00", b" ", b"{}", data, bytes(1000)]), how, False
    if kind == ".json":
        text = edited(json.loads(data), rng).encode()
        return (resealed(text, len(text)) if forged else text), how, forged
    header, body = split_header(data)
    if how == "body" and body:
        spoiled = bytearray(body)
        at = rng.randrange(len(body))
        spoiled[at : at + 8] = rng.choice([bytes(8), b"\xff" * 8, b"\x00\x00\xc0\x7f\x00\x00\x80\xff", b"\x02" * 8])
        made = with_header(header, bytes(spoiled[: len(body)]))
    elif "__metadata__" in header and "dgating" in header["__metadata__"] and rng.random() < 0.6:
        how = "manifest"
        header["__metadata__"]["dgating"] = edited(json.loads(header["__metadata__"]["dgating"]), rng)
        made = with_header(header, body)
    else:
        how = "header"
        text = edited(header, rng).encode()
        made = len(text).to_bytes(8, "little") + text + body
    return (resealed(made, 8 + int.from_bytes(made[:8], "little")) if forged else made), how, forged


# --- what becomes of them ---


def verdict(load: Callable[[Path], Any], folder: Path, honest: Any, forged: bool) -> tuple[str, str]:
    """What came of a changed save, and the words of a refusal."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            same = repr(load(folder)) == honest
    except (ValueError, FileNotFoundError) as error:
        said = str(error)
        ours = type(error) in (ValueError, FileNotFoundError) and "\n" not in said and len(said) < 1500
        return (REFUSED if ours else FAULT), f"{type(error).__name__}: {said}"
    except Exception as error:
        return FAULT, f"{type(error).__name__}: {error}"
    if same or forged:
        return (SAME if same else OTHER), ""
    return FAULT, "loaded as another object"


def attack(name: str, files: int, seed: int, show: bool = False) -> dict[str, Any]:
    """Change the saves of one format so many times, and count what becomes of them."""
    rng, counts, faults = random.Random(f"{name} {seed}"), Counter(), []
    torch.manual_seed(0)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        FORMATS[name].save(folder)
        honest = repr(FORMATS[name].load(folder))
        contents = {p: p.read_bytes() for p in sorted(folder.iterdir())}
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(files):
            path = rng.choice(list(contents))
            spoiled, how, forged = changed(contents[path], path.suffix, rng)
            path.write_bytes(spoiled)
            found, said = verdict(FORMATS[name].load, folder, honest, forged or FORMATS[name].plain)
            counts[found] += 1
            if found == FAULT:
                faults.append(f"{number} {path.name} {how}{' forged' * forged}: {said[:300]}")
            if show:
                print(f"{found:25} {path.name} {how}{' forged' * forged}: {said[:200]}")
            for other, content in contents.items():
                other.write_bytes(content)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "files": files, **{what: counts[what] for what in (REFUSED, SAME, OTHER, FAULT)},
        "peak_mb": round((after - before) / 1024, 1), "seconds": round(time.perf_counter() - began, 1),
        "first_faults": faults[:20],
    }  # fmt: skip


def main() -> None:
    """Every format in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=FORMATS)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(attack(options.only, options.files, options.seed, options.show)))
        return
    from benchmarks._common import environment, store

    found = {}
    for name, kind in FORMATS.items():
        words = ["--only", name, "--files", str(round(options.files * kind.share)), "--seed", str(options.seed)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.hostile_saves", *words], capture_output=True, text=True, check=False
        )
        lines = done.stdout.strip().splitlines()
        found[name] = (
            json.loads(lines[-1]) if done.returncode == 0 else {"died": done.returncode, "said": done.stderr[-300:]}
        )
        print(f"{name}: {found[name]}", flush=True)
    if options.files == FILES:
        store("hostile_saves", {"environment": environment("cpu"), "seed": options.seed, "formats": found})


if __name__ == "__main__":
    main()
