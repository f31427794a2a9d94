"""Text of files on a terminal: shown as it is, never interpreted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def plain(text: object) -> str:
    """One line without characters that steer a terminal: each of them becomes U+FFFD.

    Example:
        >>> from dgating.cli.terminal import plain
        >>> plain("[/] is a name") == "[/] is a name", len(plain("a" + chr(27) + "[2J"))
        (True, 5)
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def console(stderr: bool = False, quiet: bool = False) -> Console:
    """A console that takes no markup and no emoji names from what it prints."""
    from rich.console import Console

    return Console(stderr=stderr, quiet=quiet, soft_wrap=True, highlight=False, markup=False, emoji=False)
