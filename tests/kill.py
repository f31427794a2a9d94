"""Kill a function at every place where it could be killed: before and after every call of the system."""

import os
import signal
import sys
import traceback
import warnings


def fork():
    """``os.fork``; Python 3.12 warns of it where a library has threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def events(function):
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


def killed(function, at):
    """Run ``function`` in a process of its own and kill it at event number ``at``; whether it was killed."""
    child = fork()
    if child == 0:
        _profiled(function, at)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return os.WIFSIGNALED(status)


def _of_the_system(function):
    """Whether a C function asks the system for something: between two of these a kill changes nothing."""
    owner = getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__
    return owner in ("posix", "fcntl", "_io", "io")


def _profiled(function, at):
    seen = 0

    def count(frame, event, arg):
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
