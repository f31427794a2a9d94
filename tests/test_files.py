"""Files are written whole or not at all: links, owners, threads, kills, full disks, and what stands in the way."""

import errno
import os
import re
import resource
import signal
import stat
import threading
from pathlib import Path

import pytest

from benchmarks._kill import events, fork, killed
from dgating.files import _writing as _files
from dgating.files._writing import write_bytes, write_text


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder="."):
    return sorted(os.listdir(folder))


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


# --- links ---


def test_a_link_at_the_name_of_the_temporary_file_is_not_followed(here, monkeypatch):
    Path("victim").write_text("precious")
    os.symlink("victim", f".out.{os.getpid()}.tmp")
    tokens = ["0" * 16, "1" * 16, "2" * 16]
    for token in tokens[:2]:
        os.symlink("victim", _files.beside(Path("out"), f"-{token}.tmp"))
    monkeypatch.setattr(_files.secrets, "token_hex", lambda n: tokens.pop(0))
    write_text(Path("out"), "mine")
    assert Path("victim").read_text() == "precious"
    assert Path("out").read_text() == "mine"


def test_names_of_temporary_files_are_not_foreseen(here, monkeypatch):
    seen, opened = [], os.open
    monkeypatch.setattr(os, "open", lambda p, *a, **k: seen.append((str(p), *a)) or opened(p, *a, **k))
    for _ in range(3):
        write_text(Path("out"), "x")
    made = [(name, flags) for name, flags, *_ in seen if flags & os.O_CREAT]
    assert len({name for name, _ in made}) == 3
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for _, flags in made)
    assert str(os.getpid()) not in "".join(re.findall(r"-([0-9a-f]{16})", made[0][0]))


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_written(here, there):
    Path("place").mkdir()
    if there:
        Path("place/file").write_text("old")
    os.symlink("place/file", "link")
    os.symlink("link", "second")
    write_text(Path("second"), "new")
    assert (os.readlink("second"), os.readlink("link")) == ("link", "place/file")
    assert Path("place/file").read_text() == "new"
    assert names("place") == ["file"]


def test_a_link_to_itself_is_refused(here):
    os.symlink("b", "a")
    os.symlink("a", "b")
    with pytest.raises(OSError, match="'a'") as caught:
        write_text(Path("a"), "x")
    assert caught.value.errno == errno.ELOOP
    assert names() == ["a", "b"]


# --- what is replaced ---


@pytest.mark.parametrize("before", [0o600, 0o640, 0o666, 0o755, 0o444])
def test_the_mode_is_kept(here, before):
    Path("file").write_text("old")
    os.chmod("file", before)
    write_text(Path("file"), "new")
    assert mode("file") == before


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_any_other(here, mask):
    before = os.umask(mask)
    try:
        write_text(Path("file"), "new")
    finally:
        os.umask(before)
    assert mode("file") == 0o666 & ~mask


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_owner_is_kept(here):
    Path("file").write_text("old")
    os.chown("file", 1234, 4321)
    os.chmod("file", 0o4750)
    write_text(Path("file"), "new")
    found = os.stat("file")
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1234, 4321, 0o4750)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("allowed", "kept"), [("nothing", 0o707), ("group", 0o777)])
def test_rights_of_an_owner_who_cannot_be_kept_go(here, monkeypatch, allowed, kept):
    Path("file").write_text("old")
    os.chown("file", 1234, 4321)
    os.chmod("file", 0o6775)
    given = os.fchown

    def fchown(descriptor, user, group):
        if user != -1 or allowed == "nothing":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        given(descriptor, user, group)

    monkeypatch.setattr(os, "fchown", fchown)
    write_text(Path("file"), "new")
    assert mode("file") == 0o775 & kept
    assert os.stat("file").st_gid == (4321 if allowed == "group" else os.getegid())


def test_a_file_system_with_one_mode_for_all(here, monkeypatch):
    """It refuses every change of a mode, and there is none to make."""

    def refuse(*args):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    write_text(Path("file"), "old")
    monkeypatch.setattr(os, "fchmod", refuse)
    monkeypatch.setattr(os, "fchown", refuse)
    write_text(Path("file"), "new")
    assert Path("file").read_text() == "new"


def test_a_name_of_any_length(here):
    name = "n" * 255
    write_text(Path(name), "x")
    write_text(Path(name), "y")
    assert names() == [name]


# --- several at once ---


def test_threads_on_one_path(here):
    """Every writer ends well, and a reader always sees a whole file."""
    errors, stop = [], threading.Event()

    def write(n):
        try:
            for _ in range(30):
                write_bytes(Path("file"), bytes([n]) * 10_000)
        except BaseException as error:
            errors.append(error)

    def read():
        while not stop.is_set():
            content = Path("file").read_bytes()
            if len(content) != 10_000 or len(set(content)) != 1:
                errors.append(AssertionError("a mixture"))

    write_bytes(Path("file"), b"\0" * 10_000)
    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert errors == []
    assert names() == ["file"]


def test_processes_on_one_path(here):
    children = []
    for n in range(4):
        child = fork()
        if child == 0:
            try:
                for _ in range(30):
                    write_bytes(Path("file"), bytes([n]) * 10_000)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    assert len(set(Path("file").read_bytes())) == 1
    assert names() == ["file"]


def test_what_another_writes_is_left_alone(here):
    with _files.replacing(Path("file")) as file:
        file.write(b"first, ")
        write_text(Path("file"), "second")
        assert Path("file").read_text() == "second"
        file.write(b"and last")
    assert Path("file").read_text() == "first, and last"
    assert names() == ["file"]


# --- kills and losses of power ---


def test_a_kill_leaves_the_old_file_or_the_new_one_and_the_next_write_cleans(here):
    write_text(Path("file"), "old")
    places = events(lambda: write_text(Path("file"), "new"))
    assert places > 20
    kinds = set()
    for at in range(1, places + 1):
        write_text(Path("file"), "old")
        assert killed(lambda: write_text(Path("file"), "new"), at)
        kinds.add((Path("file").read_text(), len(names())))
        write_text(Path("file"), "next")
        assert names() == ["file"], at
    assert kinds == {("old", 1), ("old", 2), ("new", 1)}


def test_files_of_others_are_not_cleaned(here):
    theirs = [
        ".file.123.tmp", ".dgating-x.tmp", _files.beside(Path("other"), f"-{'0' * 16}.tmp").name,
        _files.beside(Path("file"), "-notes.tmp").name, _files.beside(Path("file"), f"-{'0' * 16}.tmp.txt").name,
    ]  # fmt: skip
    for name in theirs:
        Path(name).write_text("mine")
    pipe = _files.beside(Path("file"), f"-{'1' * 16}.tmp").name
    os.mkfifo(pipe)
    write_text(Path("file"), "x")
    assert names() == sorted([*theirs, pipe, "file"])


def test_content_is_on_the_disk_before_its_name_is(here, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def called(*args, name=name, real=real):
            of_folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append(f"{name} folder" if of_folder else name)
            return real(*args)

        monkeypatch.setattr(os, name, called)
    write_text(Path("file"), "x")
    assert calls == ["fsync", "replace", "fsync folder"]


# --- errors ---


@pytest.mark.parametrize("failing", ["fsync", "replace", "open", "fchmod"])
def test_a_failed_write_changes_nothing_and_names_the_target(here, monkeypatch, failing):
    Path("file").write_text("old")
    os.chmod("file", 0o600)

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device", ".a temporary file")

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(OSError, match="'file'") as caught:
            write_text(Path("file"), "new")
    assert caught.value.errno == errno.ENOSPC
    assert "temporary" not in str(caught.value)
    assert names() == ["file"]
    assert Path("file").read_text() == "old"


def test_a_real_limit_in_the_middle_of_the_content(here):
    """The system itself refuses to write on."""
    Path("file").write_text("old")
    child = fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        try:
            write_bytes(Path("file"), b"x" * 100_000)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG and error.filename == "file" else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert names() == ["file"]
    assert Path("file").read_text() == "old"


def test_an_error_while_writing_changes_nothing(here):
    with pytest.raises(KeyboardInterrupt), _files.replacing(Path("new/deep/file")) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert names() == []


@pytest.mark.parametrize("kind", ["folder", "link to a folder", "pipe", "below a file"])
def test_what_is_no_file_is_refused_and_stays(here, kind):
    path = Path("thing")
    if kind == "folder":
        path.mkdir()
    elif kind == "link to a folder":
        Path("place").mkdir()
        path.symlink_to("place")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("mine")
        path = path / "below"
    before = os.lstat("thing")
    with pytest.raises(OSError, match="thing"):
        write_text(path, "x")
    assert os.path.samestat(before, os.lstat("thing"))
    assert set(names()) <= {"thing", "place"}


def test_a_folder_that_cannot_be_written(here):
    """Root may write everywhere but where the system itself has the files."""
    place = Path("/proc/self/fdinfo") if os.geteuid() == 0 else here
    if place == here:
        here.chmod(0o555)
    with pytest.raises(OSError, match=r"x\.txt"):
        write_text(place / "x.txt", "x")
    here.chmod(0o755)


# --- files that must be new ---


def test_a_new_file_never_replaces_one(here, monkeypatch):
    write_text(Path("file"), "first", new=True)
    with pytest.raises(FileExistsError):
        write_text(Path("file"), "second", new=True)
    with pytest.raises(FileExistsError), _files.replacing(Path("other"), new=True) as file:
        file.write(b"mine")
        Path("other").write_text("of somebody who was quicker")
    assert Path("file").read_text() == "first"
    assert Path("other").read_text() == "of somebody who was quicker"

    def none(*args):
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", none)
    write_text(Path("third"), "x", new=True)
    assert Path("third").read_text() == "x"
    assert names() == ["file", "other", "third"]
