"""The tree is the architecture: imports point down, and nobody looks behind the face of another folder."""

from __future__ import annotations

import pytest

from benchmarks.metrics import FOLDERS, SOURCE, Import, circles, imports_of, points_up, sources


def _all(*roots: str) -> list[Import]:
    return [i for root in roots for file in sources(root) for i in imports_of(file)]


def test_every_folder_is_in_the_order() -> None:
    folders = {p.parent.name for p in SOURCE.glob("*/__init__.py")}
    assert folders == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_says_what_it_is_for(folder: str) -> None:
    text = (SOURCE / folder / "__init__.py").read_text(encoding="utf-8")
    assert text.startswith(('"""', 'r"""'))


def test_no_import_points_up() -> None:
    assert [str(i) for i in _all("src/dgating") if points_up(i)] == []


def test_no_private_module_of_another_folder_is_imported() -> None:
    """Not by other folders, and not by benchmarks and experiments either."""
    assert [str(i) for i in _all("src/dgating", "benchmarks", "experiments") if i.private] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(_all("src/dgating")) == []


def test_what_is_found_is_found() -> None:
    """The reader of imports sees every form of them."""
    file = SOURCE / "gating" / "_made_up.py"
    text = (
        "from dgating.cli import main\nfrom dgating.maths._penalty import prox_norm\nif True:\n    import dgating\n"
        "def f():\n    from dgating.gating._gate import Gate\n"
    )
    found = imports_of(file, text)
    assert [i.target for i in found] == ["cli", "maths._penalty", "", "gating._gate"]
    assert [points_up(i) for i in found] == [True, False, True, False]
    assert [i.private for i in found] == [False, True, False, False]
    there = Import("maths._penalty", "gating._made_up", file, 1)
    assert circles([*found, there]) == [("gating._made_up", "maths._penalty")]
