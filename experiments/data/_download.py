"""A file from the web: whole and as expected, or not there at all."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

TIMEOUT = 60  # seconds of silence
PIECE = 1 << 18  # bytes


def download(url: str, target: Path, check: Callable[[Path], None]) -> None:
    """Fetch a file into its place, with a progress bar on standard error.

    The bytes go to a temporary file beside ``target``, which takes its name only after ``check`` has returned. Whatever
    goes wrong, nothing is left behind.

    Args:
        url: http or https.
        target: the file to be; its folder is made.
        check: receives the temporary file and raises where it is not what was wanted.

    Raises:
        OSError: no answer, an answer other than the file, or a transfer that ended early.
        http.client.HTTPException: the server does not speak HTTP.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")  # two runs may fetch the same file
    try:
        _receive(url, temporary)
        check(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _receive(url: str, file: Path) -> None:
    # some homes refuse the default name of urllib
    request = urllib.request.Request(url, headers={"User-Agent": "dgating-experiments"})
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    try:
        with (
            urllib.request.urlopen(request, timeout=TIMEOUT) as answer,
            file.open("xb") as out,
            Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as bar,
        ):
            announced = answer.headers.get("Content-Length")
            total = int(announced) if announced else None
            line = bar.add_task(url.rsplit("/", 1)[-1], total=total)
            received = 0
            while piece := answer.read(PIECE):
                received += out.write(piece)
                bar.update(line, completed=received)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise
    if total is not None and received != total:  # http.client takes a closed connection for the end
        raise ConnectionError(f"the transfer ended after {received} of {total} bytes")
