"""The console of the commands: words, never instructions to the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console that prints words as they are: no markup, no emoji codes, no colours for numbers, no wrapping."""
    from rich.console import Console

    if not stderr and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal that knows no λ is no error
    return Console(stderr=stderr, quiet=quiet, soft_wrap=True, highlight=False, markup=False, emoji=False)
