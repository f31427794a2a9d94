"""Command line: ``dgating demo`` (the ``cli`` extra)."""


def main() -> None:
    """Entry point of the ``dgating`` command; says what to install when Typer is missing."""
    try:
        from dgating.cli.app import app
    except ImportError as error:
        raise SystemExit(f"the dgating command needs its extra: pip install 'dgating[cli]' ({error})") from error
    app()
