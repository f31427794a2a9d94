"""``torch.export`` changes the whole process while it traces: one thread at a time."""

from __future__ import annotations

import threading

# Tracing replaces functions of torch, and being quiet changes the warnings, the log and the standard output of the
# process. A second thread would trace through the first one's replacements. Held again by the same thread, it is free.
EXPORT = threading.RLock()
