"""The documentation is complete and its examples run."""

import ast
import inspect
import json
import re
from dataclasses import is_dataclass
from pathlib import Path
from types import FunctionType

import pytest

import dgating
from benchmarks.feature_selection import TABLES, report, table_rows

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
FACES = {name: getattr(dgating, name) for name in dgating.__all__ if inspect.ismodule(getattr(dgating, name))}
PUBLIC = {name: getattr(dgating, name) for name in dgating.__all__ if name not in FACES}
PUBLIC |= {f"{face}.{name}": getattr(module, name) for face, module in FACES.items() for name in module.__all__}
CLASSES = {name: x for name, x in PUBLIC.items() if inspect.isclass(x)}
MEMBERS = {
    f"{name}.{attribute}": member
    for name, c in CLASSES.items()
    for attribute, member in vars(c).items()
    if not attribute.startswith("_") and isinstance(member, FunctionType | classmethod | property)
}
CALLABLES = {  # fields of a dataclass need no Args, nor does an error
    name: x
    for name, x in PUBLIC.items()
    if not is_dataclass(x) and not (inspect.isclass(x) and issubclass(x, Exception))
}


def python_blocks(page):
    """The fenced python blocks of a page as one script, every line where it stands in the page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    script, inside = [], False
    for line in lines:
        fence = line.startswith("```")
        inside = line == "```python" if fence else inside
        script.append(line if inside and not fence else "")
    return "\n".join(script)


@pytest.mark.parametrize("page", [p for p in PAGES if python_blocks(p).strip()], ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(python_blocks(page), str(page), "exec"), {"__name__": "__main__"})


def test_every_public_name_is_in_the_api_page():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\.\. auto(?:function|class):: dgating\.([\w.]+)$", page, re.M)) == sorted(PUBLIC)


def test_all_is_sorted_and_equals_the_imports():
    tree = ast.parse(inspect.getsource(dgating))
    imported = [a.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names]
    assert dgating.__all__ == sorted(dgating.__all__)
    assert sorted(imported) == dgating.__all__


@pytest.mark.parametrize("name", PUBLIC | MEMBERS)
def test_has_docstring(name):
    doc = (PUBLIC | MEMBERS)[name].__doc__
    assert doc
    assert not doc.startswith(f"{name}(")  # what dataclass writes when there is none


@pytest.mark.parametrize("name", CALLABLES)
def test_docstring_has_an_example_and_names_every_parameter(name):
    doc = inspect.getdoc(CALLABLES[name]) + "\n"
    assert "\nExample:\n" in doc
    section = re.search(r"^Args:\n((?:    .*\n|\n)*)", doc, re.M)
    documented = re.findall(r"^    (\w+): ", section.group(1), re.M) if section else []
    assert documented == list(inspect.signature(CALLABLES[name]).parameters)


def test_feature_selection_table_equals_what_is_stored():
    stored = json.loads((ROOT / "benchmarks" / "results" / "feature_selection.json").read_text(encoding="utf-8"))
    lines = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").splitlines()
    for row in table_rows(stored):
        assert row in lines, f"`python -m benchmarks.feature_selection --report` has {row}"


def test_feature_selection_reports_what_there_is():
    """The first run of one method on one table ends with a report, too."""
    runs = {"madelon": {"forest": {"0": {"seconds": 1.0, "k": {"10": {"first": {"refit": 50.0}}}}}}}
    assert "forest" in report({"runs": runs})
    assert [row.endswith("| 50.0 / - / - / - / - |") for row in table_rows({"runs": runs})] == [
        name == "madelon" for name in TABLES
    ]
