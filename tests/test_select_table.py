"""``dgating select`` and ``dgating predict``: kinds of columns, encoding, files, and how they fail."""

import errno
import functools
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dgating.cli.app import app
from dgating.tables import _predictor, _read, _report, _select
from dgating.tables._encode import MOST_WORDS, encode, feature_of, group_labels
from dgating.tables._kinds import CATEGORY, DATE, NUMBER, column_of, labels
from dgating.tables._predictor import Predictor
from dgating.tables._select import Settings, select
from dgating.tables._target import target_of

FILES = ["metrics.json", "model.safetensors", "path.png", "preprocessing.json", "report.html", "selected.csv"]
SCRIPT = "<script>alert(1)</script>"


def dgating_(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


def ok(*args):
    result = dgating_(*args)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*args):
    """One line and exit code 2; returns the line."""
    result = dgating_(*args)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr)
    return result.stderr


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def people(n=150):
    """What matters: age, plan, and the column named like a script."""
    r = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": r.integers(18, 80, n).astype(float),
            "plan": r.choice(["basic", "plus", "pro"], n),
            "member": r.random(n) < 0.5,
            SCRIPT: r.normal(size=n),
            "cost $_{x": r.normal(size=n),
            "country": "EU",
        }
    )
    signal = 0.1 * (table["age"] - 45) + 3.0 * (table["plan"] == "pro") + 2 * table[SCRIPT] - 1
    table["amount"] = signal + 0.3 * r.normal(size=n)
    table["left"] = np.where(signal + r.logistic(size=n) > 0, "yes", "no")
    table.loc[::9, "age"] = np.nan
    table.loc[::13, "plan"] = None
    return table


QUICK = ["--folds", 3, "--quiet"]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A report of each task, and the table."""
    folder = tmp_path_factory.mktemp("reports")
    people().to_csv(folder / "people.csv", index=False)
    for target, other in (("left", "amount"), ("amount", "left")):
        ok("select", folder / "people.csv", "--target", target, "--out", folder / target, "--drop", other, *QUICK)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- kinds of columns ---

KINDS = [
    ([1.5, 2.0, None], NUMBER),
    ([1, 0, 1], NUMBER),
    ([True, False, True], CATEGORY),
    ([True, None, False], CATEGORY),
    (["a", "b", None], CATEGORY),
    (["1", "2", "3+"], CATEGORY),
    (pd.Series([1, None, 3], dtype="Int64"), NUMBER),
    (pd.Series([1, 2, 1], dtype="category"), CATEGORY),
    (["2024-01-31", "2024-02-01", None], DATE),
    (["31.12.2024", "01.02.2024"], DATE),
    (["12/31/24 10:30", "1/2/24 09:00"], DATE),
    (pd.to_datetime(["2024-01-31", "2024-02-01"]), DATE),
    (["1.2-beta", "1.3"], CATEGORY),
    ([None, None], NUMBER),
]


@pytest.mark.parametrize(("values", "kind"), KINDS)
def test_kinds(values, kind):
    assert column_of(pd.Series(values, name="x")).kind == kind


def test_kind_counts_values():
    column = column_of(pd.Series(["a", "b", None, "a"], name="x"))
    assert (column.distinct, column.missing, column.text) == (2, 1, True)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([f"C{i}" for i in range(40)], "--categorical x"),
        ([*map(str, range(40)), "?"], r"40 different numbers and '\?'.*--missing '\?'"),
        ([f"{i},5" for i in range(40)], "--decimal ,"),
        ([1.0, np.inf, -np.inf], "2 infinite"),
        ([1e300, 1.0], "1 infinite"),
        ([[1], [2]], "holds values of kind"),
        ([1 + 2j, 3j], "holds values of kind"),
        (pd.to_timedelta([1, 2]), "holds values of kind"),
    ],
)
def test_columns_that_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        column_of(pd.Series(values, name="x"))


def test_a_column_can_be_called_a_category():
    for values in ([3, 1, 3], [f"C{i}" for i in range(40)], ["2024-01-31", "2024-02-01"]):
        assert column_of(pd.Series(values, name="x"), categorical=True).kind == CATEGORY


def test_words_do_not_depend_on_how_numbers_are_stored():
    for values in ([3, 1, 3], [3.0, 1.0, 3.0], ["3", "1", "3"], pd.Series([3, 1, 3], dtype="Int64")):
        codes, words = labels(pd.Series(values))
        assert (codes.tolist(), words) == ([1, 0, 1], ["1", "3"])
    codes, words = labels(pd.Series([None, 2.5, None]))
    assert (codes.tolist(), words) == ([-1, 0, -1], ["2.5"])


TARGETS = [
    (["a", "b", "a"], None, ("a", "b")),
    ([True, False, True], None, ("False", "True")),
    ([0, 1, 0], None, (0, 1)),
    ([1.0, 2.0, 1.0], None, (1, 2)),
    ([0.5, 1.5, 0.5], None, None),
    (list(range(11)), None, None),
    ([0, 1, 0], "regression", None),
    ([*range(11)] * 3, "classification", tuple(range(11))),
]


@pytest.mark.parametrize(("values", "task", "classes"), TARGETS)
def test_the_task_is_that_of_the_target(values, task, classes):
    assert target_of(pd.Series(values, name="y"), task).classes == classes


# --- encoding ---


def encoded(values, more=None):
    series = pd.Series(values, name="x")
    feature = feature_of(column_of(series), series)
    asked = series if more is None else pd.Series(more, name="x")
    return feature, encode([feature], asked.to_frame())


def test_encode_numbers():
    feature, rows = encoded([1.0, None, 5.0, 4.0])
    assert rows.X.tolist() == [[1, 0], [4, 1], [5, 0], [4, 0]]
    assert feature.names == ["x", "x is missing"]
    assert rows.missing == {"x": 1}
    assert encoded([1, 5, 4], [None, 2])[1].X.tolist() == [[4], [2]]


def test_encode_categories():
    feature, rows = encoded(["b", "a", None, "b"], ["a", "new", None, "b"])
    assert feature.words == ("a", "b")
    assert rows.X.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert (rows.missing, rows.unknown) == ({"x": 1}, {"x": 1})


def test_encode_dates():
    _, rows = encoded(["2024-02-29", "2023-01-01", None])
    assert rows.X.tolist() == [[2024, 2, 3, 0], [2023, 1, 6, 0], [2023.5, 1.5, 4.5, 1]]
    with pytest.raises(ValueError, match="expected dates written as 2024-12-31"):
        encoded(["31.12.2024", "01.02.2024"])


def test_rare_words_share_the_zeros():
    values = [f"w{i:03}" for i in range(MOST_WORDS + 5)] * 2 + ["w999"] * 9
    feature, rows = encoded(values)
    assert len(feature.words) == MOST_WORDS
    assert "w999" in feature.words
    assert rows.unknown == {"x": 12}
    assert not rows.X[MOST_WORDS : MOST_WORDS + 4].any()


def test_groups_are_columns_of_the_table():
    table = people()[["age", "plan", "member"]]
    features = [feature_of(column_of(table[n]), table[n]) for n in table]
    assert group_labels(features).tolist() == [0, 0, 1, 1, 1, 1, 2, 2]


# --- the run ---


def test_report_has_its_files(reports):
    for target in ("left", "amount"):
        assert names(reports / target) == FILES
        assert (reports / target / "path.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert names(reports) == ["amount", "left", "people.csv"]


@pytest.mark.parametrize("target", ["left", "amount"])
def test_what_matters_is_selected(reports, target):
    found = pd.read_csv(reports / target / "selected.csv")
    assert list(found) == ["feature", "selected", "importance", "lam_leaves"]
    assert sorted(found["feature"]) == sorted(["age", "plan", "member", SCRIPT, "cost $_{x"])
    kept = found[found["selected"]]
    assert {"age", "plan", SCRIPT} <= set(kept["feature"])
    assert kept["importance"].is_monotonic_decreasing
    assert (kept["importance"] > 0).all()
    assert (found.loc[~found["selected"], "importance"] == 0).all()

    metrics = json.loads((reports / target / "metrics.json").read_text())
    assert metrics["task"] == {"left": "classification", "amount": "regression"}[target]
    assert metrics["rows"] == {"training": 120, "test": 30, "without target": 0}
    assert metrics["columns"]["dropped"]["country"] == "one value only: EU"
    assert metrics["missing"] == {"age": 17, "plan": 12}
    assert metrics["selected"] == kept["feature"].tolist()
    assert metrics["lam"] in metrics["path"]["lam"]
    chosen, nothing = metrics["chosen"], metrics["no_feature"]
    if target == "left":
        assert chosen["cv"] < nothing["cv"]
        assert chosen["test"]["accuracy"] > nothing["test"]["accuracy"]
    else:
        assert chosen["cv"] > 0.8
        assert nothing["cv"] < 0.1
        assert chosen["test"]["R²"] > 0.8


def test_the_page_escapes_the_words_of_the_data(reports):
    page = (reports / "left" / "report.html").read_text(encoding="utf-8")
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "data:image/png;base64," in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)


def test_the_command_in_the_report_repeats_it(reports, here):
    metrics = json.loads((reports / "amount" / "metrics.json").read_text())
    words = metrics["command"].split()
    assert words[0] == "dgating"
    words[words.index("--out") + 1] = "again"
    ok(*words[1:], "--quiet")
    for name in ("selected.csv", "model.safetensors", "path.png"):
        assert (here / "again" / name).read_bytes() == (reports / "amount" / name).read_bytes()


def test_parquet_gives_the_same(reports, here):
    pytest.importorskip("pyarrow")
    people().to_parquet("people.parquet")
    ok("select", "people.parquet", "--target", "amount", "--out", "out", "--drop", "left", *QUICK)
    assert Path("out/selected.csv").read_bytes() == (reports / "amount" / "selected.csv").read_bytes()


def test_another_seed_holds_back_other_rows():
    runs = [select(people().drop(columns="left"), Settings("amount", folds=2, seed=s)) for s in (0, 1)]
    assert runs[0].points["selected"].test != runs[1].points["selected"].test


def test_at_most_so_many_features():
    found = select(people().drop(columns="left"), Settings("amount", folds=2, n_features=2, test=0))
    assert found.selected[0] == SCRIPT
    assert len(found.selected) == 2
    assert found.points["selected"].test == {}
    means = found.scores.mean(0)
    assert means[found.index] == means[(found.norms > 0).sum(1) <= 2].max()


def test_no_column_may_be_left(tmp_path):
    r = np.random.default_rng(0)
    table = pd.DataFrame({"a": r.normal(size=60), "b": r.normal(size=60), "y": r.normal(size=60)})
    found = select(table, Settings("y", folds=3))
    assert found.selected == []
    assert "No column predicts better" in found.notes[0]
    found.predictor.save(tmp_path)
    made, _ = Predictor.load(tmp_path).predict(pd.DataFrame({"other": [1, 2]}))
    assert made["prediction"].tolist() == pytest.approx([found.predictor.outputs(np.empty((1, 0)))[0, 0]] * 2)


def test_rows_without_a_target_and_row_numbers_are_left_out(here):
    table = people().drop(columns="left").reset_index()
    table.loc[[3, 5], "amount"] = np.nan
    table["notes"] = np.nan
    table.to_csv("t.csv", index=False)
    said = ok("select", "t.csv", "--target", "amount", "--folds", 3)
    assert "left out 2 rows without a value of amount" in said
    assert "left out index: it numbers the rows" in said
    assert "left out notes: all values are missing" in said
    assert SCRIPT in said
    assert "report/report.html" in said


def test_names_of_every_script(here):
    odd = ["年齢", "a\nb", "$_{x", "_x", "x" * 80, "\x1b[31mred", "[/]"]
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(60, len(odd))), columns=odd)
    table.assign(y=table.sum(axis=1)).to_csv("t.csv", index=False)
    said = ok("select", "t.csv", "--target", "y", "--out", "out", "--folds", 3)
    assert "\x1b" not in said
    assert "[/]" in said
    assert sorted(pd.read_csv("out/selected.csv")["feature"]) == sorted(odd)
    ok("predict", "out", "t.csv", "--out", "p.csv", "--quiet")


def test_separators_decimals_missing_words_and_dates(here):
    table = people(80)[["age", "amount"]]
    table["when"] = pd.date_range("2020-01-01", periods=80).strftime("%Y-%m-%d")
    text = table.to_csv(index=False, sep=";", decimal=",", na_rep="unknown")
    Path("t.csv").write_text(text, encoding="utf-8-sig")
    assert "'age' has" in refused("select", "t.csv", "--target", "amount", "--decimal", ",")
    common = ["t.csv", "--target", "amount", "--decimal", ",", "--missing", "unknown", "--folds", 3]
    assert "'when' has dates: --dates derive" in refused("select", *common)
    ok("select", *common, "--dates", "derive", "--out", "out", "--separator", ";")
    features = json.loads(Path("out/metrics.json").read_text())["columns"]["features"]
    assert features == 2
    assert "missing values, filled in: age 9" in ok("predict", "out", "t.csv", "--out", "p.csv")


# --- predictions ---


@pytest.mark.parametrize("model", ["linear", "network"])
@pytest.mark.parametrize("target", ["left", "amount"])
@pytest.mark.parametrize("depth", [2, 3])
def test_predictions_are_those_of_the_estimator(monkeypatch, tmp_path, model, target, depth):
    made = []
    quick = {"steps": 8, "dense_steps": 20, "relax_steps": 2, "lams": 8} if model == "network" else {"lams": 10}

    def kept(kind, *args, **options):
        made.append(kind(*args, **options, **quick))
        return made[-1]

    for name in ("DGatedLinearClassifierCV", "DGatedLinearRegressorCV", "DGatedClassifierCV", "DGatedRegressorCV"):
        monkeypatch.setattr(_select, name, functools.partial(kept, getattr(_select, name)))
    table = people(90).drop(columns={"left": "amount", "amount": "left"}[target])
    found = select(table, Settings(target, model=model, depth=depth, folds=2, hidden=(5, 4)))
    assert found.index == made[0].best_index_
    found.predictor.save(tmp_path)
    loaded = Predictor.load(tmp_path)
    kept_columns = table[[f.name for f in loaded.features]]
    predicted, _ = loaded.predict(kept_columns)
    X = encode(found.features, table).X
    if target == "amount":
        np.testing.assert_allclose(predicted["prediction"], made[0].predict(X), atol=1e-6)
    else:
        expected = made[0].predict_proba(X)
        np.testing.assert_allclose(predicted[["probability no", "probability yes"]], expected, atol=1e-6)
        assert predicted["prediction"].tolist() == [("no", "yes")[i] for i in expected.argmax(1)]
    names_left = {found.features[j].name for j in made[0].selected_groups_}
    assert names_left == set(found.selected)


def test_predict_command(reports, here):
    table = people().drop(columns=["left", "amount", "country", "cost $_{x"])
    table.loc[0, "plan"] = "new"
    table[::-1].to_csv("new.csv", index=False)  # the order of the rows stays as it is
    said = ok("predict", reports / "left", "new.csv", "--out", "p.csv")
    assert "words that are new: plan 1" in said
    assert re.search(r"missing values, filled in: age 17, plan 1[12]", said)
    found = pd.read_csv("p.csv")
    assert list(found) == ["prediction", "probability no", "probability yes"]
    assert len(found) == len(table)
    model = Predictor.load(reports / "left")
    expected, _ = model.predict(table[::-1].reset_index(drop=True))
    np.testing.assert_allclose(found["probability yes"], expected["probability yes"], rtol=1e-12)
    assert ok("predict", reports / "left", "new.csv", "--out", "p.csv", "--force", "--quiet") == ""


def test_words_that_look_like_numbers_stay_words(here):
    r = np.random.default_rng(0)
    code = r.choice(["01", "02", "x"], 60)
    pd.DataFrame({"code": code, "y": (code == "01") + 0.1 * r.normal(size=60)}).to_csv("t.csv", index=False)
    ok("select", "t.csv", "--target", "y", "--out", "out", *QUICK)
    Path("new.csv").write_text("code\n01\n02\n")
    ok("predict", "out", "new.csv", "--out", "p.csv", "--quiet")
    assert np.diff(pd.read_csv("p.csv")["prediction"])[0] < -0.5


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("plan,member\nbasic,True\n", r"\['age', '<script"),
        (f"age,plan,{SCRIPT}\nold,basic,1\n", "'age': expected numbers, received 'old'"),
        (f"age,plan,{SCRIPT}\ninf,basic,1\n", "'age': expected finite numbers"),
        ("", "is empty"),
    ],
)
def test_predict_refuses_other_tables(reports, here, content, said):
    Path("new.csv").write_text(content)
    assert re.search(said, refused("predict", reports / "left", "new.csv", "--out", "p.csv"))
    assert names(here) == ["new.csv"]


def test_predict_does_not_replace_its_input(reports):
    table = reports / "people.csv"
    assert "expected a new file" in refused("predict", reports / "left", table, "--out", table)
    assert "is a folder" in refused("predict", reports / "left", table, "--out", reports)


def damaged(words, **changes):
    return json.dumps({**words, **changes})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f, w: (f / "model.safetensors").unlink(),
        lambda f, w: (f / "preprocessing.json").unlink(),
        lambda f, w: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]),
        lambda f, w: (f / "preprocessing.json").write_bytes(bytes(range(256))),
        lambda f, w: (f / "preprocessing.json").write_text("[1, 2]"),
        lambda f, w: (f / "preprocessing.json").write_text("{}"),
        lambda f, w: (f / "preprocessing.json").write_text("[" * 100_000),
        lambda f, w: (f / "preprocessing.json").write_text(damaged(w, format="other/1")),
        lambda f, w: (f / "preprocessing.json").write_text(damaged(w, features=w["features"][1:])),
        lambda f, w: (f / "preprocessing.json").write_text(damaged(w, features=[1])),
        lambda f, w: (f / "preprocessing.json").write_text(damaged(w, classes=["only one"])),
        lambda f, w: (f / "preprocessing.json").write_text(damaged(w, activation="magic")),
        lambda f, w: (f / "preprocessing.json").write_text(damaged(w, reading={})),
    ],
)
def test_a_damaged_report_is_one_line(reports, here, spoil):
    Predictor.load(reports / "left").save(here / "copy")
    ok("predict", "copy", reports / "people.csv", "--out", "p.csv")
    spoil(here / "copy", json.loads((here / "copy" / "preprocessing.json").read_text()))
    assert "written by dgating select" in refused("predict", "copy", reports / "people.csv", "--out", "q.csv")
    assert not Path("q.csv").exists()


# --- bad tables and options ---


def text_of(**changes):
    return people(60).assign(**changes).to_csv(index=False)


BAD = [
    ("t.csv", None, [], "no file 't.csv'"),
    ("t.xlsx", b"PK", [], "expected a table whose name ends in .csv, .tsv, .parquet"),
    ("t.csv", b"", [], "is empty"),
    ("t.csv", b"\n\n\n", [], "cannot be read"),
    ("t.csv", b"age,amount\n", [], "has a header and no rows"),
    ("t.csv", bytes(range(256)) * 50, [], "is not a text file"),
    ("t.csv", "age,amount\n1,Köln\n".encode("latin-1"), [], "expected text in UTF-8"),
    ("t.csv", "äge,amount\n1,2\n".encode("latin-1"), [], "expected text in UTF-8"),
    ("t.csv", b"age,amount\n1,2\n1,2,3,4\n", [], "cannot be read as a table"),
    ("t.csv", b"age,amount\n1,2,3\n4,5,6\n", [], "its first row has 3 fields, expected 2"),
    ("t.csv", b'age,amount\n"1,2\n', [], "cannot be read as a table"),
    ("t.csv", b"age,amount,age\n1,2,3\n", [], "'age' is there twice"),
    ("t.parquet", b"not parquet", [], "is not a whole Parquet file"),
    ("t.parquet", b"", [], "is not a whole Parquet file"),
    ("t.csv", b"age:amount\n1:2\n", [], "is the separator right"),
    ("t.csv", text_of(), ["--target", "amuont"], "'amuont'; there are 8, such as 'amount'"),
    ("t.csv", text_of(), ["--drop", "agee"], "--drop: expected a column of the table, received 'agee'"),
    ("t.csv", text_of(), ["--categorical", "x"], "--categorical: expected a column"),
    ("t.csv", text_of(), ["--drop", "amount"], "this is the target"),
    ("t.csv", text_of(), ["--task", "guess"], "--task: expected one of classification, regression"),
    ("t.csv", text_of(), ["--model", "forest"], "--model: expected one of linear, network"),
    ("t.csv", text_of(), ["--rule", "2se"], "--rule: expected one of best, 1se, within"),
    ("t.csv", text_of(), ["--dates", "keep"], "--dates: expected one of refuse, derive"),
    ("t.csv", text_of(), ["--separator", ";;"], "--separator: expected one character"),
    ("t.csv", text_of(), ["--test", "1"], "--test: expected a share"),
    ("t.csv", text_of(), ["--test", "0.95"], "--test 0.95: 57 of 60 rows"),
    ("t.csv", text_of(), ["--folds", "40"], "40 folds"),
    ("t.csv", text_of(), ["--folds", "40", "--test", "0"], "--folds 40: expected at least 80 rows"),
    ("t.csv", text_of(amount=3), [], "every row has the value '3'"),
    ("t.csv", text_of(amount=None), [], "no row has a value"),
    ("t.csv", text_of(amount=["a"] * 58 + ["b"] * 2), [], "class 'b' has 2"),
    ("t.csv", text_of(amount=["a", "b", "c"] * 20), ["--task", "regression"], "received words such as 'a'"),
    ("t.csv", text_of(amount=[0] * 57 + [1] * 3), [], "or --task regression"),
    ("t.csv", text_of(amount=["2024-01-31", "2024-02-01"] * 30), [], "received dates"),
    ("t.csv", text_of(amount=["inf"] + ["1.5"] * 59), [], "'amount' has 1 infinite values"),
    ("t.csv", text_of(age=["inf"] + ["1.5"] * 59), [], "'age' has 1 infinite values"),
    ("t.csv", text_of(name=[f"N{i}" for i in range(60)]), [], "'name' is text with 60 values in 60 rows"),
    ("t.csv", text_of(when=["2024-01-31", "2024-02-01"] * 30), [], "'when' has dates: --dates derive"),
    ("t.csv", text_of(when=["31.01.2024", "01.02.2024"] * 30), ["--dates", "derive"], "written as 2024-12-31"),
    ("t.csv", text_of()[:20].split("\n")[0] + "x", [], "has a header and no rows"),
    ("t.csv", "amount,a\n" + "1.5,3\n2.5,3\n" * 20, [], "none is left"),
]


@pytest.mark.parametrize(("name", "content", "options", "said"), BAD)
def test_bad_input_is_one_line_and_leaves_no_files(here, name, content, options, said):
    if content is not None:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = names(here)
    options = options if "--target" in options else ["--target", "amount", *options]
    assert said in refused("select", name, "--out", "some/where", *options)
    assert names(here) == before


def test_all_refused_columns_are_in_one_message(here):
    Path("t.csv").write_text(text_of(name=[f"N{i}" for i in range(60)], age=["inf"] + ["1.5"] * 59))
    said = refused("select", "t.csv", "--target", "amount")
    assert "'name' is text" in said
    assert "'age' has 1 infinite" in said
    assert "or leave them out: --drop age --drop name" in said


def test_a_table_larger_than_the_memory(here, monkeypatch):
    Path("t.csv").write_text(text_of())
    monkeypatch.setattr(_read, "memory", lambda: 1000)
    assert "more than half of the" in refused("select", "t.csv", "--target", "amount")
    monkeypatch.setattr(_read, "memory", lambda: 45_000)
    assert "the table as numbers needs" in refused("select", "t.csv", "--target", "amount")
    monkeypatch.setattr(_read, "memory", lambda: None)
    ok("select", "t.csv", "--target", "amount", *QUICK)


def test_parquet_without_pyarrow(here, monkeypatch):
    Path("t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert 'pip install "dgating[tables]"' in refused("select", "t.parquet", "--target", "y")


def test_a_missing_extra(here, monkeypatch):
    monkeypatch.setattr("dgating.cli.select.find_spec", lambda name: None if name == "pandas" else True)
    assert 'needs pandas: pip install "dgating[tables,' in refused("select", "t.csv", "--target", "y")


# --- the folder ---


def test_an_old_report_is_kept_or_replaced(reports, here):
    Predictor.load(reports / "left").save(here / "out")
    before = (here / "out" / "preprocessing.json").read_bytes()
    command = ["select", reports / "people.csv", "--target", "amount", "--drop", "left", "--out", "out", *QUICK]
    assert "replace it by --force" in refused(*command)
    assert (here / "out" / "preprocessing.json").read_bytes() == before
    ok(*command, "--force")
    assert names("out") == FILES
    Path("out/thesis.txt").write_text("mine")
    assert "such as 'thesis.txt'" in refused(*command, "--force")
    assert Path("out/thesis.txt").read_text() == "mine"
    assert names(here) == ["out"]


def test_out_is_a_file_or_below_one(reports, here):
    Path("file").write_text("mine")
    command = ["select", reports / "people.csv", "--target", "amount", "--out"]
    assert "expected a folder" in refused(*command, "file")
    assert "cannot be written" in refused(*command, "file/report")
    assert Path("file").read_text() == "mine"
    assert names(here) == ["file"]


@pytest.mark.parametrize("module", [_report, _predictor])
def test_a_full_disk_leaves_nothing(reports, here, monkeypatch, module):
    def full(path, content):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_bytes", full)
    command = ["select", reports / "people.csv", "--target", "amount", "--drop", "left", *QUICK, "--out", "new/out"]
    assert "cannot be written: No space left on device" in refused(*command)
    assert names(here) == []


def test_predictions_on_a_full_disk(reports, here, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = refused("predict", reports / "left", reports / "people.csv", "--out", "p.csv")
    assert "cannot be written: No space left on device" in said
    assert names(here) == []
