"""What a run found, as files: a table, numbers as JSON, a page to read."""

from __future__ import annotations

import base64
import json
import math
import platform
from dataclasses import asdict
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dgating
from dgating._text import argument, command_line, plain
from dgating.files import Contents, write_bytes, write_text
from dgating.tables._csv import write_csv
from dgating.tables._encode import MOST_WORDS
from dgating.tables._kinds import CATEGORY, DATE, Column
from dgating.tables._picture import picture
from dgating.tables._predictor import WEIGHTS_FILE, WORDS_FILE
from dgating.tables._select import SCORES, Point, Selection, Settings

TABLE_FILE, PICTURE_FILE, METRICS_FILE, PAGE_FILE = "selected.csv", "path.png", "metrics.json", "report.html"
REPORT = Contents(
    "report", (TABLE_FILE, PICTURE_FILE, METRICS_FILE, PAGE_FILE, WEIGHTS_FILE, WORDS_FILE), mark=WORDS_FILE
)
FORMAT = "dgating/selection/1"
NAMES = {"selected": "selected", "weakest": "weakest penalty", "none": "no feature"}

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 54rem; margin: 2.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #e4e7eb; vertical-align: top; }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td { overflow-wrap: anywhere; } tr.out td { color: #868e96; } tr.in td:first-child { font-weight: 600; }
.bar { background: #4c78a8; height: .6rem; border-radius: 2px; } .wide { width: 30%; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; background: #f4f5f7; border-radius: 4px; }
code { padding: .1rem .3rem; } pre { padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; } .note { border-left: 3px solid #d9a441; padding-left: .8rem; } small, .dim { color: #5c6670; }
"""


def write_report(found: Selection, folder: Path, table: Path, out: Path) -> None:
    """All files of a report into a folder; ``table`` and ``out`` as the user named them."""
    image = picture(found)
    command = reproduce(found.settings, table, out)
    selected = found.table()
    for name in ("importance", "lam_leaves"):
        selected[name] = [float(f"{value:.6g}") for value in selected[name]]
    write_csv(selected, folder / TABLE_FILE)
    write_bytes(folder / PICTURE_FILE, image)
    write_text(folder / METRICS_FILE, json.dumps(_finite(metrics(found, command)), indent=1) + "\n")
    write_text(folder / PAGE_FILE, page(found, image, command, out))
    found.predictor.save(folder)


def reproduce(settings: Settings, table: Path, out: Path) -> str:
    """The command line of a run."""
    words = ["dgating", "select", argument(table), "--out", argument(out)]
    default = Settings(settings.target)
    flat = {**vars(settings), **vars(settings.reading)}
    usual = {**vars(default), **vars(default.reading)}
    for name, value in flat.items():
        if name in ("reading", "jobs") or (value == usual[name] and name not in ("target", "seed")):
            continue
        for item in value if isinstance(value, tuple) else (value,):
            words += [f"--{name.replace('_', '-')}", str(item)]
    return command_line(words)


def metrics(found: Selection, command: str) -> dict[str, Any]:
    """The numbers of a run; those of the folds are signed so that larger is better in ``cv_scores`` alone."""
    return {
        "format": FORMAT,
        "task": found.target.task,
        "target": found.target.name,
        "classes": found.target.classes,
        "rows": found.rows,
        "columns": {
            "read": len(found.columns), "dropped": found.dropped, "features": len(found.features),
            "selected": len(found.selected),
        },
        "missing": {c.name: c.missing for c in found.columns if c.missing},
        "model": found.settings.model,
        "rule": found.settings.rule if found.settings.n_features is None else "best",
        "lam": float(found.lams[found.index]),
        "selected": found.selected,
        "score": SCORES[found.target.task],
        **{
            name: {"features": p.n_features, "cv": _shown_cv(found, p), "cv_standard_error": p.cv_error, "test": p.test}
            for name, p in zip(("chosen", "weakest_penalty", "no_feature"), found.points.values(), strict=True)
        },
        "path": {
            "lam": found.lams.tolist(), "features": (found.norms > 0).sum(1).tolist(),
            "cv_scores": found.scores.tolist(),
        },
        "notes": found.notes,
        "seconds": round(found.seconds, 2),
        "settings": asdict(found.settings),
        "versions": versions(),
        "command": command,
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    packages = ("torch", "numpy", "pandas", "scikit-learn")
    return {"dgating": dgating.__version__, "python": platform.python_version()} | {p: version(p) for p in packages}


def summary(found: Selection) -> str:
    """One sentence."""
    p = found.points["selected"]
    return (
        f"{p.n_features} of {len(found.features)} features kept, {SCORES[found.target.task]} "
        f"{number(_shown_cv(found, p))} ± {number(p.cv_error)} in cross-validation"
        + "".join(f", {name} {number(value)}" for name, value in p.test.items())
        + (f" on {found.rows['test']} test rows" if p.test else "")
        + "."
    )


def number(value: float) -> str:
    """Three figures; a dash for what is not known."""
    if math.isnan(value):
        return "–"
    return "never" if math.isinf(value) else f"{value:.3g}"


def page(found: Selection, image: bytes, command: str, out: Path) -> str:
    """A page of its own: no scripts, no other files. Every word that comes from the data is escaped."""
    title = f"What predicts {found.target.name}"
    task = found.target.task
    classes = "" if found.target.classes is None else f" of {len(found.target.classes)} classes"
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in found.notes)
    rows = found.rows
    counts = f"{rows['training']} rows for training, {rows['test']} held back for the test"
    if rows["without target"]:
        counts += f", {rows['without target']} without a value of the target left out"
    rule = found.settings.rule
    reason = {
        "best": "the best mean score of the folds",
        "1se": "the largest strength whose mean score is within one standard error of the best",
        "within": "the largest strength whose mean score is within 0.01 of the best",
    }[rule]
    if found.settings.n_features is not None:
        reason = f"the best mean score of the folds among those with at most {found.settings.n_features} features"
    predict = command_line(["dgating", "predict", argument(out), "new.csv", "--out", "predictions.csv"])
    used = " ".join(f"{name} {word}," for name, word in versions().items()).rstrip(",")
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title><style>{STYLE}</style></head><body>
<h1>What predicts <em>{_text(found.target.name)}</em></h1>
<p>{_text(summary(found))}</p>
<p class="dim">{task.capitalize()}{classes}, {found.settings.model} model, {counts}.</p>
{notes}
<h2>Scores</h2>
{_scores(found)}
<p><small>Cross-validation has {len(found.scores)} folds; ± is the standard error over them. Its score chose the
strength, so it flatters the model a little; the test rows had no part in it. “Weakest penalty” is the other end of
the path, “no feature” the prediction that is the same for every row.</small></p>
<h2>Features</h2>
{_features(found)}
<p><small>Importance is the norm of the weights that read the feature, on standardised values. “Leaves at” is the
strength λ from which on the feature is gone: what leaves last was needed most.</small></p>
<h2>Path</h2>
<p>The penalty rises from left to right and features leave. The dashed line is the strength that was taken,
λ = {number(found.lams[found.index])}: {_text(reason)}.</p>
<img alt="Scores, number of features and importances against the strength of the penalty"
 src="data:image/png;base64,{base64.b64encode(image).decode()}">
<h2>What was done with each column</h2>
{_columns(found)}
<h2>Predict, reproduce</h2>
<p>New rows need the selected columns only:</p><pre>{_text(predict)}</pre>
<p>This report again:</p><pre>{_text(command)}</pre>
<p><small>{_text(used)}; {found.seconds:.1f} s.</small></p>
</body></html>
"""


def _text(word: object) -> str:
    """Words of the data for the page; line breaks and changes of direction would reach the words around them."""
    return escape(plain(word))


def _scores(found: Selection) -> str:
    score = SCORES[found.target.task]
    tests = list(found.points["selected"].test)
    heads = ["", "features", f"{score}, cross-validation", *(f"{t}, test" for t in tests)]
    lines = []
    for name, p in found.points.items():
        cells = [
            str(p.n_features),
            f"{number(_shown_cv(found, p))} ± {number(p.cv_error)}",
            *map(number, p.test.values()),
        ]
        lines.append(f"<tr><td>{NAMES[name]}</td>" + "".join(f'<td class="n">{c}</td>' for c in cells) + "</tr>")
    head = f"<th>{heads[0]}</th>" + "".join(f'<th class="n">{h}</th>' for h in heads[1:])
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _features(found: Selection) -> str:
    table = found.table()
    largest = max(float(table["importance"].max()), 1e-300)
    lines = []
    for name, selected, importance, leaves in table.itertuples(index=False):
        kind, bar = ("in", f'<div class="bar" style="width:{100 * importance / largest:.1f}%"></div>')
        if not selected:
            kind, bar = "out", ""
        lines.append(
            f'<tr class="{kind}"><td>{_text(name)}</td><td class="wide">{bar}</td>'
            f'<td class="n">{number(importance)}</td><td class="n">{number(leaves)}</td></tr>'
        )
    head = '<th>feature</th><th></th><th class="n">importance</th><th class="n">leaves at λ</th>'
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _columns(found: Selection) -> str:
    known = {c.name: c for c in found.columns}
    lines = []
    for feature in found.features:
        column = known[feature.name]
        lines.append((column, "", _treatment(found, column)))
    for name, reason in found.dropped.items():
        lines.append((known.get(name, Column(name, "–", False, 0, 0)), "out", f"left out: {reason}"))
    cells = "".join(
        f'<tr class="{kind}"><td>{_text(c.name)}</td><td>{c.kind}</td><td class="n">{c.distinct or "–"}</td>'
        f'<td class="n">{c.missing or "–"}</td><td>{_text(what)}</td></tr>'
        for c, kind, what in lines
    )
    head = '<th>column</th><th>kind</th><th class="n">values</th><th class="n">missing</th><th>treatment</th>'
    return f"<table><tr>{head}</tr>{cells}</table>"


def _treatment(found: Selection, column: Column) -> str:
    feature = next(f for f in found.features if f.name == column.name)
    if feature.kind == CATEGORY:
        words = ", ".join(feature.words[:6]) + (", …" if len(feature.words) > 6 else "")
        said = f"one column a word: {words}"
        if column.distinct > len(feature.words):
            said += (
                f"; {column.distinct - len(feature.words)} rarer words share the zeros (at most {MOST_WORDS} have one)"
            )
    else:
        said = "year, month, day of the week" if feature.kind == DATE else "as it is"
        if feature.indicator:
            said += f"; missing ones get the median {', '.join(f'{v:.4g}' for v in feature.fill)}"
    return said + ("; a column marks missing values" if feature.indicator else "")


def _shown_cv(found: Selection, point: Point) -> float:
    return -point.cv if found.target.classes is not None else point.cv


def _finite(value: Any) -> Any:
    """JSON has no ``nan``."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
