"""What ``select``, ``predict`` and ``demo`` print and write: words of the data stay words, files of others stay."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dgating._text import argument, command_line, plain
from dgating.cli.app import app
from dgating.cli.terminal import console
from dgating.tables._csv import FORMULA, safe, write_csv

ESCAPES = ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "\x1b]8;;http://evil\x1b\\link", "a\x08\x08b", "bell\x07"]
DIRECTIONS = ["\u202egnp.exe", "\u2066isolated\u2069", "\u200frtl", "soft\u00adhyphen", "zero\u200bwidth"]
MARKUP = [
    "[/]",
    "[red]",
    "[link=http://evil]x",
    ":smile:",
    "$\\frac{",
    "$_{x",
    "_x",
    "<script>alert(1)</script>",
    "&amp;",
]
BREAKS = ["a\nb", "a\rb", "a\u2028b", "a\x85b", "a\tb"]
FORMULAS = ["=1+1", "+1+1", "-1+1", "@SUM(1)", "=cmd|' /C calc'!A0", "＝1", "a;=1+1"]
NAMES = ESCAPES + DIRECTIONS + MARKUP + BREAKS + FORMULAS


def dgating_(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def ok(*args):
    result = dgating_(*args)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*args):
    result = dgating_(*args)
    assert result.exit_code == 2, result.output
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    return result.stderr


def is_safe(text):
    return all(c == "\n" or c.isprintable() for c in text)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report, its table and its output; names, classes and the target are hostile."""
    folder = tmp_path_factory.mktemp("report")
    r = np.random.default_rng(0)
    table = pd.DataFrame(r.normal(size=(200, len(NAMES))), columns=NAMES)
    table["\x1b[5mconstant\n[/]"] = 1
    table["target\x1b[31m[/]\n$_{"] = np.where(
        table[MARKUP].sum(axis=1) + 0.1 * r.normal(size=200) > 0, "=yes", "\x1b[31m[/]"
    )
    table.to_parquet(folder / "table.parquet")
    said = ok(
        "select", folder / "table.parquet", "--target", table.columns[-1], "--out", folder / "[red]\x1b[31m",
        "--folds", 3, "--n-features", 12,
    )  # fmt: skip
    return folder / "[red]\x1b[31m", folder / "table.parquet", said


# --- words ---


def test_plain_keeps_what_is_printable():
    for text in ("age", "年齢", "größe", "[/]", "a b", "λ ± 1e-3", "e\u0301"):
        assert plain(text) == text
    for text in [*ESCAPES, *DIRECTIONS, *BREAKS, "\x00", "\ud800", "\udcff", "\U000e0041", "\ufeff"]:
        shown = plain(text)
        assert "\N{REPLACEMENT CHARACTER}" in shown
        assert len(shown) == len(text)
        assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in shown)
    assert plain(3.5) == "3.5"


@pytest.mark.parametrize("text", [*MARKUP, "[bold]x[/bold]", "http://example.org 3.5 True", "x" * 300])
def test_the_console_prints_words_as_they_are(capsys, monkeypatch, text):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console().print(text)
    console(stderr=True).print(text)
    assert capsys.readouterr() == (f"{text}\n", f"{text}\n")
    console(quiet=True).print(text)
    assert capsys.readouterr().out == ""


def test_a_terminal_without_greek_is_no_error():
    code = "from dgating.cli.terminal import console; console().print('λ is 1')"
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "? is 1\n", "")


# --- select and predict on hostile names ---


def test_the_terminal_gets_words_only(report):
    _, _, said = report
    assert is_safe(said)
    for name in ("[/]", ":smile:", "$\\frac{"):
        assert name in said
    assert "left out \N{REPLACEMENT CHARACTER}[5mconstant\N{REPLACEMENT CHARACTER}[/]: one value only" in said


def test_predict_prints_words_only(report, here):
    folder, table, _ = report
    pd.read_parquet(table).assign(**{NAMES[0]: None}).to_parquet("new.parquet")
    said = ok("predict", folder, "new.parquet", "--out", "\x1b[31m[/].csv")
    assert is_safe(said)
    assert "predictions of target\N{REPLACEMENT CHARACTER}[31m[/]" in said


def test_errors_print_words_only(report, here):
    folder, table, _ = report
    for name in NAMES:
        frame = pd.DataFrame({name: ["x", "y"] * 15, "y": range(30)})
        frame.to_parquet("t.parquet")
        for target in ("y\x1b[31m\n[/]", "y"):
            said = refused("select", "t.parquet", "--target", target, "--out", "o", "--test", "0.99")
            assert is_safe(said)
        pd.DataFrame({name: [f"{name}{i}" for i in range(30)], "y": range(30)}).to_parquet("t.parquet")
        assert is_safe(refused("select", "t.parquet", "--target", "y", "--out", "o"))
    pd.DataFrame({name: ["\x1b[31m\nx"] for name in NAMES}).to_parquet("t.parquet")
    assert is_safe(refused("predict", folder, "t.parquet", "--out", "p.csv"))
    assert is_safe(refused("predict", folder, "no\x1b[31m\nfile.csv", "--out", "p.csv"))
    assert is_safe(refused("predict", "no\x1b[31m\nreport", table, "--out", "p.csv"))


class Page(HTMLParser):
    """Tags, and the text outside of the style."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_has_words_only(report):
    folder, _, _ = report
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert is_safe(text)
    page = Page(text)
    assert "script" not in page.tags
    assert "red" not in page.tags
    assert "<script>alert(1)</script>" in page.words


def test_the_command_of_the_page_is_the_command(report):
    """A shell reads back the words, and the line itself acts on no terminal."""
    folder, table, _ = report
    command = json.loads((folder / "metrics.json").read_text())["command"]
    assert command.isprintable()
    code = f"for word in {command}; do printf '%s\\0' \"$word\"; done"
    words = subprocess.run(["bash", "-c", code], capture_output=True, check=True).stdout.decode().split("\0")[:-1]
    assert words[:5] == ["dgating", "select", str(table), "--out", str(folder)]
    assert words[words.index("--target") + 1] == "target\x1b[31m[/]\n$_{"


@pytest.mark.parametrize("word", [*NAMES, "it's", "a\\b", "\x01" + "7", "-x", "", "\udcff", "*", "$HOME", "`ls`", "!!"])
def test_a_shell_reads_words_back(word):
    line = command_line(["printf", "%s", word])
    assert line.isprintable()
    read = subprocess.run(["bash", "-c", line], capture_output=True, check=True)
    assert read.stdout == os.fsencode(word)
    if word.isprintable():
        assert shlex.split(line)[2] == word
    assert not argument(word).startswith("-")


def test_names_of_the_picture_are_no_formulas(report, here):
    """Neither mathtext nor LaTeX sees a name, whatever the user's settings say."""
    import matplotlib

    from dgating.tables._picture import picture
    from dgating.tables._select import Settings, select

    table = pd.read_parquet(report[1])
    for names in (
        ["$\\frac{", "$_{x", "_x", "\\textbf{"],
        ["שלום", "مرحبا", "नमस्ते", "年齢"],
        ["a\nb", "\x1b[31m", "\x00"],
    ):
        frame = table[NAMES[: len(names)]].set_axis(names, axis=1)
        frame["y"] = frame.sum(axis=1) + 0.01
        found = select(frame, Settings("y", folds=2, test=0, rule="best"))
        with matplotlib.rc_context({"text.usetex": True}):
            assert picture(found)[:8] == b"\x89PNG\r\n\x1a\n"


def test_names_that_are_no_text(here):
    """A file name of any bytes: the report is written, and its command names the file."""
    name = os.fsdecode(b"t\xff.csv")
    try:
        Path(name).touch()
    except OSError:
        pytest.skip("the file system wants UTF-8")
    r = np.random.default_rng(0)
    pd.DataFrame(r.normal(size=(30, 2)), columns=["a", "y"]).to_csv(name)
    said = ok("select", name, "--target", "y", "--folds", 2, "--out", os.fsdecode(b"out\xff"))
    assert is_safe(said)
    command = json.loads((Path(os.fsdecode(b"out\xff")) / "metrics.json").read_text())["command"]
    assert "$'t\\377.csv'" in command


# --- formulas ---


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"), ("+a", "'+a"), ("-a", "'-a"), ("@a", "'@a"),
        ("\ta", "'\ta"), ("\ra", "'\ra"), ("\na", "'\na"),
        ("＝a", "'＝a"), ("'=1", "''=1"), ("''-a", "'''-a"), ("-1+1", "'-1+1"),
        ("a=1", "a=1"), ("'a", "'a"), ("", ""), ("-1", "-1"), ("+1.5e-3", "+1.5e-3"), ("'-1", "''-1"), ("-١", "'-١"),
    ],
)  # fmt: skip
def test_texts_that_start_like_a_formula(text, written):
    assert safe(text) == written
    found = written[1:] if re.match("'+[=+\\-@\t\r\n＝＋－＠]", written) else written
    assert found == text


def test_numbers_stay_numbers(here):
    frame = pd.DataFrame(
        {
            "=name": ["=a", "b;=c", None, '"=d'], "number": [-1, 2, -3, 4], "float": [-0.5, np.inf, np.nan, 1e-300],
            "truth": [True, False, True, False],
        }
    )  # fmt: skip
    before = frame.copy()
    write_csv(frame, Path("t.csv"))
    assert Path("t.csv").read_text().splitlines()[:2] == ['"\'=name","number","float","truth"', '"\'=a",-1,-0.5,True']
    pd.testing.assert_frame_equal(frame, before)
    read = pd.read_csv("t.csv")
    assert read["number"].tolist() == [-1, 2, -3, 4]
    assert read["truth"].dtype == bool
    np.testing.assert_array_equal(read["float"], frame["float"])
    assert read["'=name"].fillna("").tolist() == ["'=a", "b;=c", "", '"=d']


def test_no_file_of_a_run_has_a_formula(report, here):
    folder, table, _ = report
    ok("predict", folder, table, "--out", "p.csv", "--quiet")
    for path in (folder / "selected.csv", Path("p.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [
            c for c in cells if FORMULA.match(c) and not c.startswith("'") and not re.fullmatch(r"-?[\d.e-]+", c)
        ]
    selected = pd.read_csv(folder / "selected.csv")["feature"]
    assert sorted(selected) == sorted(map(safe, NAMES))
    made = pd.read_csv("p.csv")
    assert set(made["prediction"]) == {"'=yes", "\x1b[31m[/]"}
    assert list(made) == ["prediction", "probability \x1b[31m[/]", "probability =yes"]


def test_classes_that_are_numbers_stay_numbers(here):
    r = np.random.default_rng(0)
    x = r.normal(size=60)
    pd.DataFrame({"x": x, "y": np.where(x > 0, 1, -1)}).to_csv("t.csv", index=False)
    ok("select", "t.csv", "--target", "y", "--out", "out", "--folds", 3, "--quiet")
    ok("predict", "out", "t.csv", "--out", "p.csv", "--quiet")
    assert set(pd.read_csv("p.csv")["prediction"]) == {-1, 1}


# --- files that are there ---


def test_predict_replaces_nothing_unasked(report, here):
    folder, table, _ = report
    Path("p.csv").write_text("mine")
    Path("link.csv").symlink_to("p.csv")
    Path("nowhere.csv").symlink_to("gone/nothing.csv")
    for name in ("p.csv", "link.csv", "nowhere.csv"):
        assert "is there already" in refused("predict", folder, table, "--out", name)
    assert Path("p.csv").read_text() == "mine"
    ok("predict", folder, table, "--out", "link.csv", "--force")
    assert Path("link.csv").is_symlink()
    assert Path("p.csv").read_text().startswith('"prediction"')


def test_a_file_that_comes_in_meanwhile_is_kept(report, here, monkeypatch):
    folder, table, _ = report
    import dgating.tables as module

    write = module.write_csv

    def late(frame, path, **options):
        Path("p.csv").write_text("mine")
        write(frame, path, **options)

    monkeypatch.setattr(module, "write_csv", late)
    assert "File exists" in refused("predict", folder, table, "--out", "p.csv")
    assert Path("p.csv").read_text() == "mine"


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_predict_never_writes_into_what_it_reads(report, here, force):
    folder, table, _ = report
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    Path("to_report").symlink_to(folder)
    Path("to_model.csv").symlink_to(folder / "model.safetensors")
    Path("to_new.csv").symlink_to(folder / "new.csv")
    os.link(folder / "metrics.json", "hard.csv")
    os.link(table, "table.csv")
    Path("to_table.csv").symlink_to(table)
    os.mkfifo("pipe.csv")
    for out, said in [
        (folder / "predictions.csv", "outside the report"),
        (folder / "selected.csv", "outside the report"),
        (folder / "deep/er/p.csv", "outside the report"),
        ("to_report/p.csv", "outside the report"),
        ("to_model.csv", "outside the report"),
        ("to_new.csv", "outside the report"),
        ("hard.csv", "outside the report"),
        (table, "which is read"),
        ("table.csv", "which is read"),
        ("to_table.csv", "which is read"),
        ("/dev/null", "is a folder or a device"),
        ("pipe.csv", "is a folder or a device"),
        (here, "is a folder or a device"),
    ]:
        assert said in refused("predict", folder, table, "--out", out, *force), out
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert os.path.exists("/dev/null")
    assert Path("/dev/null").is_char_device()


def test_select_does_not_replace_the_folder_of_its_table(report, here):
    """A table that is a file of an earlier report would be lost with it."""
    ok("predict", report[0], report[1], "--out", "x.csv", "--quiet")
    shutil.copytree(report[0], "out")
    Path("link.csv").symlink_to("out/selected.csv")
    for table in ("out/selected.csv", "link.csv"):
        said = refused("select", table, "--target", "importance", "--out", "out", "--force")
        assert "holds the table itself" in said
    assert Path("out/selected.csv").is_file()


def test_the_demo_replaces_nothing_unasked(here):
    Path("out").mkdir()
    Path("out/report.json").write_text("mine")
    for force in ([], ["--force"]):
        assert "is no demo" in refused("demo", "--out", "out", *force)
    assert Path("out/report.json").read_text() == "mine"
    Path("out/pixels.png").write_text("mine")
    assert "holds a demo already" in refused("demo", "--out", "out")
    assert sorted(os.listdir("out")) == ["pixels.png", "report.json"]


def test_a_report_that_a_kill_left_between_two_names_is_read(report, here):
    """Where the system cannot exchange folders, the old one has another name for a moment."""
    from dgating.files._writing import beside

    shutil.copytree(report[0], beside(here / "out", "-old"))
    ok("predict", "out", report[1], "--out", "p.csv")
    assert "outside the report" in refused("predict", "out", report[1], "--out", "out/p.csv")
    assert not Path("out").exists()
