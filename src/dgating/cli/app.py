"""The Typer application: one command, one function; the work is done elsewhere."""

from __future__ import annotations

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
    """Structured sparsity by D-Gating: gate, train, certify, collapse."""


@app.command()
def demo(
    seed: Annotated[int, typer.Option(help="Random seed of split, weights and batches.")] = 0,
    depth: Annotated[int, typer.Option(min=2, help="Depth D: the penalty is lam * sum ||W_j||^(2/D).")] = 3,
    lam: Annotated[float, typer.Option(min=0.0, help="Strength of the penalty, for a mean loss.")] = 0.01,
    out: Annotated[Path, typer.Option(help="Folder for report.json, model.safetensors and pixels.png.")] = Path("demo"),
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, mps.")] = "cpu",
) -> None:
    """Find the pixels and neurons that matter for reading real handwritten digits."""
    from dgating.cli.demo import run

    try:
        _check_device(device)
        run(seed=seed, depth=depth, lam=lam, out=out, device=device)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without the device
        raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
