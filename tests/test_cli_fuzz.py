"""Damaged tables and reports: ``select`` and ``predict`` end well or with one line, and leave no half of a run."""

import functools
import io
import json
import random
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dgating.cli.app import app
from dgating.tables import _select

ROWS = 24


def table():
    r = np.random.default_rng(0)
    made = pd.DataFrame(r.normal(size=(ROWS, 2)).round(3), columns=["a", "b"])
    made["word"] = r.choice(["x", "y"], ROWS)
    made["label"] = np.where(made["a"] > 0, "yes", "no")
    return made


def written(kind):
    if kind == "parquet":
        buffer = io.BytesIO()
        table().to_parquet(buffer)
        return buffer.getvalue()
    return table().to_csv(index=False, sep="\t" if kind == "tsv" else ",").encode()


# --- damages: each takes the content and a source of chance ---


def flip(content, r):
    made = bytearray(content)
    for _ in range(r.choice([1, 3, 30])):
        made[r.randrange(len(made))] ^= 1 << r.randrange(8)
    return bytes(made)


def cut(content, r):
    return content[: r.randrange(len(content))]


def inserted(*pieces):
    def insert(content, r):
        at = r.randrange(len(content))
        return content[:at] + r.choice(pieces) + content[at:]

    return insert


def of_lines(change):
    def damage(content, r):
        lines = content.split(b"\n")
        change(lines, r)
        return b"\n".join(lines)

    return damage


def ragged(lines, r):
    for _ in range(r.choice([1, 5])):
        i = r.randrange(len(lines))
        lines[i] = r.choice([lines[i] + b",1,2", lines[i].rpartition(b",")[0], b"", b",,,,", b'"'])


def header(lines, r):
    lines[0] = r.choice(
        [
            b"a,a,word,label",
            b",,,label",
            b"label",
            b"",
            b"a,b,word,label,",
            b" a, b,label,label ",
            b'"a',
            b"1,2,3,4",
            b"a\x1b[31m,[/],$\\frac{,label",
            b"a,b,word," + b"label" * 50_000,
        ]
    )


def value(lines, r):
    words = [
        b"1e400",
        b"-1e400",
        b"inf",
        b"nan",
        b"1e-400",
        b"9" * 400,
        b"0x1p3",
        b"1_000",
        b"1,5",
        b"\xff\xfe",
        b"'",
        b'""',
        b"2024-13-99",
        b"99999-01-01",
        b"\x00",
        b"TRUE",
        b"x" * 200_000,
        b"\xed\xa0\x80",
        b"=1+1",
        b"\x1b[31m[/]",
    ]
    for _ in range(r.choice([1, 10, 40])):
        i = r.randrange(len(lines) > 1, len(lines))
        cells = lines[i].split(b",")
        cells[r.randrange(len(cells))] = r.choice(words)
        lines[i] = b",".join(cells)


def other(content, r):
    return r.choice(
        [
            b"",
            b"\n" * 50,
            b"\xef\xbb\xbf" + content,
            b"\xff\xfe" + content,
            content.decode("latin-1").encode("utf-16"),
            content.decode("latin-1").encode("utf-32"),
            content.replace(b"\n", b"\r"),
            content.replace(b"\n", b"\r\n"),
            content * 2,
            b"\x00" * 500,
            bytes(r.randrange(256) for _ in range(500)),
            b"PAR1" + content + b"PAR1",
            b"{}",
            b"[" * 10_000,
            b'"' * 9999,
            content.upper(),
        ]
    )


ANY = [flip, cut, inserted(b"\0", b"\xef\xbb\xbf", b"\r", b'"', b"\xff", b"\x1a", b"x" * 150_000), other]
TEXT = [of_lines(ragged), of_lines(header), of_lines(value)]
OF_PARQUET = [
    lambda f: f.rename(columns={"a": ""}),
    lambda f: f.rename(columns={"word": "[/]\x1b"}),
    lambda f: f.assign(a=[[1, 2]] * ROWS),
    lambda f: f.assign(a=[{"x": 1}] * ROWS),
    lambda f: f.assign(a=[b"\xff"] * ROWS),
    lambda f: f.assign(a=pd.to_timedelta(range(ROWS))),
    lambda f: f.assign(label=None),
    lambda f: f.assign(label=1.5),
    lambda f: f.assign(a=np.inf),
    lambda f: f.assign(a=np.iinfo(np.uint64).max),
    lambda f: f[:0],
    lambda f: f[:1],
    lambda f: f[["label"]],
    lambda f: f.assign(a=pd.Series(["1", 2.5, None] * 8).astype(str)),
    lambda f: f.assign(a=pd.date_range("2020", periods=ROWS, tz="UTC")),
    lambda f: f.assign(label=pd.Categorical(["u", "v"] * 12, categories=["u", "v", "w"])),
    lambda f: f.set_index("a"),
    lambda f: f.assign(a=pd.period_range("2020", periods=ROWS, freq="D")),
    lambda f: f.assign(label=["x" * 10**5, "y"] * 12),
]


def damaged_table(seed):
    """Name and content of a table, from one to three damages."""
    r = random.Random(seed)
    kind = r.choice(["csv", "csv", "tsv", "parquet"])
    content = written(kind)
    if kind == "parquet" and r.random() < 0.5:
        buffer = io.BytesIO()
        r.choice(OF_PARQUET)(table()).to_parquet(buffer)
        return "t.parquet", buffer.getvalue()
    for _ in range(r.choice([1, 1, 2, 3])):
        damage = r.choice(ANY if kind == "parquet" else ANY + TEXT)
        content = damage(content, r) if content else content
    return f"t.{kind}", content


def damaged_report(seed, folder):
    """Damage one file of a report: its bytes, or a value anywhere in its JSON."""
    r = random.Random(seed)
    name = r.choice(["model.safetensors", "preprocessing.json", "preprocessing.json"])
    file = folder / name
    if name.endswith("json") and r.random() < 0.7:
        words = json.loads(file.read_text())
        place, key = words, r.choice(list(words))
        while isinstance(place[key], dict | list) and len(place[key]) and r.random() < 0.8:
            place = place[key]
            key = r.choice(list(place)) if isinstance(place, dict) else r.randrange(len(place))
        if r.random() < 0.2 and isinstance(place, dict):
            del place[key]
        else:
            place[key] = r.choice(
                [
                    None,
                    "",
                    "x",
                    "\ud800",
                    -1,
                    10**30,
                    1e308,
                    [],
                    {},
                    [1],
                    ["x"],
                    True,
                    [[]],
                    {"x": 1},
                    "\x1b[31m",
                    [None],
                ]
            )
        file.write_text(json.dumps(words))
    else:
        file.write_bytes(r.choice(ANY)(file.read_bytes(), r))


@pytest.fixture(scope="module")
def quick():
    """Paths of five strengths."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DGatedLinearClassifierCV", "DGatedLinearRegressorCV"):
            patch.setattr(_select, name, functools.partial(getattr(_select, name), lams=5))
        yield


@pytest.fixture(scope="module")
def report(quick, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    table().to_csv(folder / "t.csv", index=False)
    select = ["select", str(folder / "t.csv"), "--target", "label", "--out", str(folder / "report"), "--test", "0"]
    assert CliRunner().invoke(app, [*select, "--folds", "2", "--quiet"]).exit_code == 0
    return folder / "report"


def end_of(*args):
    """``"well"``, ``"refused"``, or what is wrong with the way in which a command ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pandas, about odd columns
        result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"traceback: {result.exception!r}"
    said = result.stderr
    if not all(c == "\n" or c.isprintable() for c in result.output):
        return f"control characters: {result.output!r}"
    if result.exit_code == 0:
        return "well"
    if result.exit_code == 2 and said.startswith("error: ") and said.count("\n") == 1 and len(said) < 3000:
        return "refused"
    return f"exit code {result.exit_code}: {said}"


def select_table(seed, report):
    name, content = damaged_table(seed)
    Path(name).write_bytes(content)
    end = end_of("select", name, "--target", "label", "--out", "out", "--folds", "2", "--test", "0")
    if (end == "well") != Path("out").is_dir():
        return f"{end}, with the files {[p.name for p in Path().iterdir()]}"
    return end


def predict_table(seed, report):
    name, content = damaged_table(seed)
    Path(name).write_bytes(content)
    return predicted(report, name)


def predict_report(seed, report):
    shutil.copytree(report, "report")
    damaged_report(seed, Path("report"))
    table().to_csv("t.csv", index=False)
    return predicted("report", "t.csv")


def predicted(report, name):
    end = end_of("predict", str(report), name, "--out", "p.csv")
    if (end == "well") != Path("p.csv").is_file():
        return f"{end}, with the files {[p.name for p in Path().iterdir()]}"
    return end


WAYS = {"select a table": select_table, "predict a table": predict_table, "predict from a report": predict_report}


def ends(way, seeds, report, folder, monkeypatch):
    """How often a command ended in which way; anything but well or refused with its seed."""
    found = Counter()
    for seed in seeds:
        place = folder / str(seed)
        place.mkdir()
        monkeypatch.chdir(place)
        end = WAYS[way](seed, report)
        found[end if end in ("well", "refused") else f"{seed}: {end}"] += 1
        monkeypatch.chdir(folder)
        shutil.rmtree(place)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_damaged_files(way, report, tmp_path, monkeypatch):
    found = ends(way, range(30), report, tmp_path, monkeypatch)
    assert set(found) <= {"well", "refused"}, found
    assert found["refused"] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_many_damaged_files(way, report, tmp_path, monkeypatch):
    found = ends(way, range(30, 430), report, tmp_path, monkeypatch)
    print(way, dict(found))
    assert set(found) <= {"well", "refused"}, found
