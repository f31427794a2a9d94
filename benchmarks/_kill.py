"""Kill a function wherever it could be killed: before and after every call of the system."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any


def fork() -> int:
    """``os.fork``; Python 3.12 warns of it where a library has threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def events(function: Callable[[], Any]) -> int:
    """Number of calls of the system, and of returns from them, in a run of ``function`` in a process of its own."""
    read, write = os.pipe()
    child = fork()
    if child == 0:
        seen = _profiled(function, None)
        os.write(write, str(seen).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return int(said)


def killed(function: Callable[[], Any], at: int) -> bool:
    """Run ``function`` in a process of its own and kill it at event number ``at``; whether there was one."""
    child = fork()
    if child == 0:
        _profiled(function, at)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def _of_the_system(function: Any) -> bool:
    """Whether a C function asks the system for something: between two of these a kill changes nothing."""
    owner = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
    return owner in ("posix", "fcntl", "_io", "io")


def _profiled(function: Callable[[], Any], at: int | None) -> int:
    seen = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal seen
        if event in ("c_call", "c_return", "c_exception") and _of_the_system(arg):
            seen += 1
            if seen == at:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.setprofile(count)
        function()
    except BaseException:
        sys.setprofile(None)
        traceback.print_exc()
        os._exit(1)
    sys.setprofile(None)
    return seen
