"""How the code looks, in figures beside their targets: ``make metrics`` prints them and stores them.

Figures are read off the syntax trees of ``src/dgating``. The same functions serve ``tests/test_architecture.py``.
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "dgating"

# From the bottom up: a folder may import from those in front of it.
FOLDERS = (
    "files",
    "tasks",
    "maths",
    "gating",
    "training",
    "structure",
    "select",
    "compaction",
    "deploy",
    "paths",
    "linear",
    "estimators",
    "reporting",
    "plots",
    "tables",
    "cli",
)
USES_THE_WHOLE = ("tables", "cli")  # they use the library as its users do: import dgating
HARD = ("structure/_solve", "structure/_factors", "structure/rules/product", "structure/_engine", "structure/_capture")
HARD += ("training/_monitor", "training/_gradients", "training/_reader", "training/_bounds")
EXACT = ("maths", "gating", "training")  # no Any
COLUMNS = 100


@dataclass(frozen=True)
class Import:
    """One import of a module of the library: names without ``dgating.``, the top is the empty one."""

    importer: str
    target: str
    file: Path
    line: int

    @property
    def private(self) -> bool:
        """Whether a private module of another folder is imported, past its face."""
        folder, _, rest = self.target.partition(".")
        return rest.startswith("_") and folder != folder_of(self.importer)

    def __str__(self) -> str:
        where = self.file.relative_to(ROOT) if self.file.is_relative_to(ROOT) else self.file
        return f"{where}:{self.line} imports dgating.{self.target}"


def sources(root: str = "src/dgating") -> list[Path]:
    """The Python files below a folder of the repository."""
    return sorted((ROOT / root).rglob("*.py"))


def module_of(file: Path) -> str:
    """The name of a module of the library; outside of it the path, which is no such name."""
    if not file.is_relative_to(SOURCE):
        return f"/{file.relative_to(ROOT)}"
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def folder_of(module: str) -> str:
    """The folder of a module; empty for those at the top."""
    first = module.split(".", maxsplit=1)[0]
    return first if first in FOLDERS else ""


def imports_of(file: Path, text: str | None = None) -> list[Import]:
    """All imports of the library in a file, those within functions too, in their order."""
    tree = ast.parse(file.read_text(encoding="utf-8") if text is None else text)
    found = []
    for node in ast.walk(tree):
        for target in _targets(node):
            found.append(Import(module_of(file), target, file, node.lineno))  # type: ignore[attr-defined]
    return sorted(found, key=lambda i: i.line)


def _targets(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name == "dgating" or alias.name.startswith("dgating."):
                yield alias.name[8:]
    if isinstance(node, ast.ImportFrom) and node.module is not None:
        if node.module == "dgating":
            yield from {_submodule("", alias.name) for alias in node.names}
        elif node.module.startswith("dgating."):
            yield from {_submodule(node.module[8:], alias.name) for alias in node.names}


def _submodule(base: str, name: str) -> str:
    """``from base import name`` imports a module if there is one of that name."""
    inner = f"{base}.{name}".lstrip(".")
    place = SOURCE / inner.replace(".", "/")
    return inner if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file() else base


def points_up(found: Import) -> bool:
    """Whether an import goes to a folder that is not below the one it is in."""
    here, there = folder_of(found.importer), folder_of(found.target)
    if found.importer in ("", "__main__") or here == there:
        return found.target == "" and bool(here) and here not in USES_THE_WHOLE
    if not there:  # the top itself, or one of its few small modules
        return found.target == "" and here not in USES_THE_WHOLE
    return not here or FOLDERS.index(there) > FOLDERS.index(here)


def circles(found: Iterable[Import]) -> list[tuple[str, ...]]:
    """Modules that import each other, directly or through others. Faces of folders stand for their modules."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for i in found:
        if i.importer != i.target and i.importer and i.target:
            arrows[i.importer].add(i.target)
    reach = {module: _reached(module, arrows) for module in arrows}
    rings = {tuple(sorted(m for m in reach if m in reach[module] and module in reach[m])) for module in reach}
    return sorted(ring for ring in rings if ring)


def _reached(module: str, arrows: dict[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    todo = [module]
    while todo:
        for target in arrows.get(todo.pop(), ()):
            if target not in seen:
                seen.add(target)
                todo.append(target)
    return seen


def bodies(tree: ast.AST) -> list[int]:
    """Lines of the body of every function, without its docstring."""
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1:] if ast.get_docstring(node) is not None else node.body
            out.append(first[-1].end_lineno - first[0].lineno + 1 if first else 0)  # type: ignore[operator]
    return out


def comments(text: str) -> int:
    """Comments that say something to people: not those for tools."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    told = [t.string for t in tokens if t.type == tokenize.COMMENT]
    return sum(not re.match(r"#\s*(type:|noqa|fmt:|pragma|pyright)", t) for t in told)


def share(part: int, whole: int) -> float:
    """Per hundred."""
    return round(100 * part / whole, 2)


def measured() -> dict[str, dict[str, Any]]:
    """Every figure, with its target in words."""
    texts = {file: file.read_text(encoding="utf-8") for file in sources()}
    trees = {file: ast.parse(text) for file, text in texts.items()}
    lines = {file: text.count("\n") for file, text in texts.items()}
    total = sum(lines.values())
    every = [node for tree in trees.values() for node in ast.walk(tree)]
    choices = [node for node in every if isinstance(node, ast.IfExp)]
    nested = [c for c in choices if any(isinstance(n, ast.IfExp) for n in ast.walk(c) if n is not c)]
    body = sorted(n for tree in trees.values() for n in bodies(tree))
    wide = sum(len(line) > COLUMNS for text in texts.values() for line in text.splitlines())
    hard = [f for f in texts if any(str(f.relative_to(SOURCE)).startswith(h) for h in HARD)]
    said = share(sum(comments(texts[f]) for f in hard), sum(lines[f] for f in hard))
    vague = {f: len(re.findall(r"\bAny\b", text)) for f, text in texts.items()}
    exact = [f for f in texts if f.relative_to(SOURCE).parts[0] in EXACT]
    found = [i for f in texts for i in imports_of(f)]
    outside = [i for root in ("benchmarks", "experiments") for f in sources(root) for i in imports_of(f)]
    names = ast.literal_eval(re.search(r"__all__ = (\[.*?\])", texts[SOURCE / "__init__.py"], re.S)[1])  # type: ignore[index]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {
        "files": (len(texts), ""),
        "lines of a file, median": (statistics.median(lines.values()), "about 125"),
        "lines of a file, most": (max(lines.values()), "at most 460"),
        "lines of a function, 90th percentile": (body[int(0.9 * len(body))], "at most 20"),
        "lines of a function, most": (body[-1], "at most 55"),
        f"lines over {COLUMNS} columns, per 100": (share(wide, total), "0"),
        "conditional expressions per 100 lines": (share(len(choices), total), "at most 1.5"),
        "conditional expressions within others": (len(nested), "0"),
        "comments per 100 lines of the hard files": (said, "4 or more"),
        "mentions of Any": (sum(vague.values()), "at most 192"),
        "mentions of Any in maths, gating, training": (sum(vague[f] for f in exact), "0"),
        "comments for a type checker": (sum(t.count("# type: ignore") for t in texts.values()), "at most 18"),
        "names in dgating": (len(names), "about 45"),
        "private imports across folders": (sum(i.private for i in [*found, *outside]), "0"),
        "imports that point up": (sum(points_up(i) for i in found), "0"),
        "circles": (len(circles(found)), "0"),
        "words in the README": (len(readme.split()), "at most 600"),
    }
    return {name: {"now": now, "target": target} for name, (now, target) in rows.items()}


def main() -> None:
    from benchmarks._common import environment, store

    found = measured()
    for name, row in found.items():
        print(f"{name:45s} {row['now']!s:>8}   {row['target']}")
    store("metrics", {"environment": environment(), "metrics": found})


if __name__ == "__main__":
    main()
