"""The Typer application: one command, one function; the work is done elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import dgating
from dgating.cli.exits import one_line

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help="Structured sparsity by D-Gating."
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"dgating {dgating.__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Structured sparsity by D-Gating: gate, train, certify, collapse, compact."""


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Random seed of split, weights and batches.")] = 0,
    depth: Annotated[int, typer.Option(min=2, help="Depth D: the penalty is lam * sum ||W_j||^(2/D).")] = 3,
    lam: Annotated[float, typer.Option(min=0.0, help="Strength of the penalty, for a mean loss.")] = 0.01,
    out: Annotated[Path, typer.Option(help="Folder for report, models and picture; new or empty.")] = Path("demo"),
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, mps.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
) -> None:
    """Find the pixels and neurons that matter for reading real handwritten digits."""
    from dgating.cli.demo import run

    with one_line():
        _check_device(device)
        run(seed=seed, depth=depth, lam=lam, out=out, device=device, force=force)


@app.command(name="compact")
def compact_command(
    model: Annotated[str, typer.Argument(help="A .pt2 file, or package.module:function, which is imported and run.")],
    out: Annotated[
        list[Path] | None,
        typer.Option(help="Write the compact model: .safetensors (a built model), .pt2 or .onnx. Repeatable."),
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="State dict for the built model, .safetensors.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="An input: [NAME=]SHAPE[:DTYPE[:HIGH]], as 2x3x32x32, ids=2x16:int64:1000, mask=2x16:ones."
        ),
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="package.module:function that makes the inputs; it is imported and run.")
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Write the plan as JSON: what leaves, what stays and why.")] = None,
    fold: Annotated[
        bool, typer.Option(help="Move constants other than zero into biases, so that their units can leave.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Remove from a saved model what contributes exactly nothing, and check that it computes the same.

    package.module:function runs your code, by design. Every file is read as data: a .pt2 file may hold operators of
    ATen on tensors and nothing else. They are run, and can take time and memory as any model can.
    """
    from dgating.cli.compact import compact

    with one_line():
        compact(
            model, weights=weights, shapes=shape or [], inputs=inputs, out=out or [], plan=plan, fold=fold, force=force
        )


@app.command(name="inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="A .safetensors, .pt2, .onnx or GateConfig .json file.")],
) -> None:
    """Say what is in a file: tensors and their zeros, operations, inputs, what was sliced.

    The file is read as data. Nothing in it is run, imported or unpickled, and no other file that it names is opened.
    """
    from dgating.cli.inspect import inspect

    with one_line():
        inspect(file)


@app.command(name="select")
def select_command(
    table: Annotated[Path, typer.Argument(help="A .csv, .tsv or .parquet file with a line of names.")],
    target: Annotated[str, typer.Option(help="The column to predict.")],
    out: Annotated[Path, typer.Option(help="Folder for the report; it must not exist, or be empty.")] = Path("report"),
    task: Annotated[
        str | None, typer.Option(help="classification or regression; by default what the target looks like.")
    ] = None,
    model: Annotated[str, typer.Option(help="linear, or network (finds effects that are not linear).")] = "linear",
    hidden: Annotated[list[int] | None, typer.Option(min=1, help="Width of a hidden layer, 100. Repeatable.")] = None,
    depth: Annotated[int, typer.Option(min=2, help="Depth D: the penalty is lam * sum ||W_j||^(2/D).")] = 3,
    rule: Annotated[
        str, typer.Option(help="1se: few features; best: the best score; within: 0.01 below the best.")
    ] = "1se",
    n_features: Annotated[int | None, typer.Option(min=1, help="At most so many; the best score of these.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    test: Annotated[float, typer.Option(help="Share of the rows held back for a test, 0 for none.")] = 0.2,
    drop: Annotated[list[str] | None, typer.Option(help="A column to leave out. Repeatable.")] = None,
    categorical: Annotated[list[str] | None, typer.Option(help="A column to read as a category. Repeatable.")] = None,
    dates: Annotated[str, typer.Option(help="refuse, or derive: year, month, day of the week.")] = "refuse",
    missing: Annotated[list[str] | None, typer.Option(help="A word for a missing value, as ?. Repeatable.")] = None,
    separator: Annotated[str | None, typer.Option(help="Between fields; by default that of the header.")] = None,
    decimal: Annotated[str, typer.Option(help="The decimal mark.")] = ".",
    jobs: Annotated[int, typer.Option(help="Processes, -1 for one a core; the result is the same.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of test rows, folds and weights.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier report.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Find the columns of a table that predict one of them, and write a report."""
    from dgating.cli.select import need, select

    with one_line():
        need("select", "pandas", "sklearn", "matplotlib")
        from dgating.tables import Reading, Settings

        settings = Settings(
            target, task, model, depth, rule, n_features, folds, test, tuple(hidden or (100,)), tuple(drop or ()),
            tuple(categorical or ()), dates, seed, jobs, Reading(separator, decimal, tuple(missing or ())),
        )  # fmt: skip
        select(table, out, settings, force=force, quiet=quiet)


@app.command(name="predict")
def predict_command(
    report: Annotated[Path, typer.Argument(help="A folder that dgating select wrote.")],
    table: Annotated[Path, typer.Argument(help="A table with the selected columns; others do not matter.")],
    out: Annotated[Path, typer.Option(help="The .csv file to write.")],
    separator: Annotated[str | None, typer.Option(help="Between fields; by default that of the header.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing.")] = False,
) -> None:
    """Predict the rows of a table with the model of a report."""
    from dgating.cli.select import need, predict

    with one_line():
        need("predict", "pandas", "sklearn")
        predict(report, table, out, separator=separator, force=force, quiet=quiet)


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without the device
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
