"""``torch.export`` changes the whole process while it traces: one thread at a time."""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Tracing replaces functions of torch, and being quiet changes the warnings, the log and the standard output of the
# process. A second thread would trace through the first one's replacements. Held again by the same thread, it is free.
EXPORT = threading.RLock()


@contextmanager
def silent() -> Iterator[None]:
    """No warnings and no log: torch writes tracebacks of many lines before it raises, through handlers of its own."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
