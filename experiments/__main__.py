"""``python -m experiments list | run NAME --scale SCALE | report``."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.markdown import Markdown

from experiments.common.registry import experiment, names
from experiments.common.report import block, draw, report, reported
from experiments.common.runner import run
from experiments.data import DataMissing

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


class Scale(str, Enum):
    """How large a run is."""

    smoke = "smoke"
    cpu = "cpu"
    gpu = "gpu"
    paper = "paper"


@app.command("list")
def list_() -> None:
    """Names and titles of the experiments."""
    for name in names():
        print(f"{name:18}{experiment(name).title}")


@app.command("run")
def run_(
    name: Annotated[str, typer.Argument(help="of an experiment, or 'all'")],
    scale: Annotated[Scale, typer.Option(help="how large")] = Scale.smoke,
    data: Annotated[Optional[Path], typer.Option(help="folder of data sets")] = None,  # noqa: UP045  (Typer reads it)
    out: Annotated[Optional[Path], typer.Option(help="store results here, not beside the code")] = None,  # noqa: UP045
    jobs: Annotated[int, typer.Option(min=1, help="processes at a time")] = 1,
    device: Annotated[str, typer.Option(help="where networks train: cpu, cuda")] = "cpu",
    only: Annotated[Optional[list[str]], typer.Option(help="KEY=VALUE: only cells with this value")] = None,  # noqa: UP045
    restart: Annotated[bool, typer.Option("--restart", help="drop what is stored")] = False,
) -> None:
    """Run an experiment, or go on with one; results are stored as they come."""
    try:
        chosen = dict(pair.split("=", 1) for pair in only or [])
    except ValueError:
        raise typer.BadParameter(f"--only: expected KEY=VALUE, received {only}.") from None
    every = [each for each in names() if scale.value in experiment(each).configurations]
    for each in every if name == "all" else [name]:
        try:
            run(each, scale.value, data=data, out=out, jobs=jobs, device=device, only=chosen, restart=restart)
        except (ValueError, DataMissing, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        for found in reported(experiment(each), out, (scale.value,)):
            draw(found)
            Console().print(Markdown(block(found)))


@app.command("report")
def report_() -> None:
    """Render the README files and pictures from what is stored."""
    for file in report():
        print(file.relative_to(Path(__file__).parent.parent))


if __name__ == "__main__":
    app()
