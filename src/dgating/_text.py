"""Words that may come from a file, made safe: on a terminal, and on a command line that a user pastes into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def plain(text: object) -> str:
    """The text on one line, without characters that a terminal acts upon.

    Escapes, line breaks, characters that change the direction of writing, and all others that are not printable are
    replaced by U+FFFD.
    """
    return "".join(c if c.isprintable() else REPLACEMENT for c in str(text))


def quoted(word: str) -> str:
    """A word of a command line; every character of the result is printable.

    Characters that are not printable (a line break, an escape) would act on the terminal that the line is pasted
    into. They are written as octal numbers within ``$'...'``, which bash, zsh and ksh read.

    Example:
        >>> print(quoted("a b"), quoted("a\\x1b'b"))
        'a b' $'a\\033\\'b'
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_character, word)) + "'"


def command_line(words: Sequence[str]) -> str:
    """The words, quoted."""
    return " ".join(map(quoted, words))


def argument(path: object) -> str:
    """A path that is not taken for an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _character(c: str) -> str:
    if c.isprintable():
        return f"\\{c}" if c in "\\'" else c
    return "".join(f"\\{byte:03o}" for byte in c.encode("utf-8", "surrogateescape"))
