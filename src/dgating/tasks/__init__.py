"""Independent tasks in processes or threads, resumable from a folder, with a fingerprint of all that decides."""

from dgating.tasks._fingerprint import described, fingerprint
from dgating.tasks._run import Result, Task, check_workers, claim, folder_key, run_tasks, shown, some_threads

__all__ = [
    "Result",
    "Task",
    "check_workers",
    "claim",
    "described",
    "fingerprint",
    "folder_key",
    "run_tasks",
    "shown",
    "some_threads",
]
