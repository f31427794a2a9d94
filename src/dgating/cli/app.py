"""The Typer application: one command, one function; the work is done elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

import dgating

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Structured sparsity by D-Gating.")


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
    out: Annotated[Path, typer.Option(help="Folder for the report, the models and the picture.")] = Path("demo"),
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Find the pixels and neurons that matter for reading real handwritten digits."""
    from dgating.cli.demo import run

    with _one_line():
        _check_device(device)
        run(seed=seed, depth=depth, lam=lam, out=out, device=device)


@app.command(name="compact")
def compact_command(
    model: Annotated[str, typer.Argument(help="A .pt2 file, or package.module:function that builds the full model.")],
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
    inputs: Annotated[str | None, typer.Option(help="package.module:function that makes the inputs.")] = None,
    plan: Annotated[Path | None, typer.Option(help="Write the plan as JSON: what leaves, what stays and why.")] = None,
    fold: Annotated[
        bool, typer.Option(help="Move constants other than zero into biases, so that their units can leave.")
    ] = True,
) -> None:
    """Remove from a saved model what contributes exactly nothing, and check that it computes the same.

    MODEL is run: give files and functions that you trust.
    """
    from dgating.cli.compact import compact

    with _one_line():
        compact(model, weights=weights, shapes=shape or [], inputs=inputs, out=out or [], plan=plan, fold=fold)


@app.command(name="inspect")
def inspect_command(
    file: Annotated[Path, typer.Argument(help="A .safetensors, .pt2, .onnx or GateConfig .json file.")],
) -> None:
    """Say what is in a file: tensors and their zeros, what was sliced, what could be removed."""
    from dgating.cli.inspect import inspect

    with _one_line():
        inspect(file)


@contextmanager
def _one_line() -> Iterator[None]:
    """Mistakes of the user are one line and exit code 2."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, ImportError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without the device
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
