"""Folders of a command: kills at every moment, two runs at once, and files that are not ours."""

import errno
import os
import shutil
import signal
import stat
import threading
from pathlib import Path

import numpy as np
import pytest

from benchmarks._kill import events, fork, killed
from dgating.files import _folders
from dgating.files import _writing as _files
from dgating.files._folders import Contents, readable, staged
from dgating.files._writing import write_text
from dgating.tasks._run import Task, run_tasks

CONTENTS = Contents("report", ("a.txt", "b.txt", "mark.json"), "mark.json")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["one step", "two renames"])
def way(request, monkeypatch):
    """With a system that exchanges folders in one step, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(_folders, "exchange", lambda a, b: False)
    return request.param


def names(folder="."):
    return sorted(os.listdir(folder))


def make(word, out="out", force=True):
    with staged(Path(out), CONTENTS, force) as folder:
        for name in CONTENTS.files:
            write_text(folder / name, word)


def word_of(folder="out"):
    """What stands in all files of a folder; ``None`` where they are not whole and of one run."""
    folder = readable(Path(folder))
    if not folder.is_dir() or names(folder) != sorted(CONTENTS.files):
        return None
    words = {(folder / name).read_text() for name in CONTENTS.files}
    return words.pop() if len(words) == 1 else None


# --- kills ---


def test_a_kill_leaves_a_whole_folder_and_the_next_run_cleans(here, way):
    make("old")
    places = events(lambda: make("new"))
    found = set()
    for at in range(1, places + 1, 11):
        make("old")
        assert killed(lambda: make("new"), at)
        word = word_of()
        assert word in ("old", "new"), at
        assert way == "two renames" or Path("out").is_dir()
        found.add((word, Path("out").is_dir()))
        make("next")
        assert (word_of(), names()) == ("next", ["out"]), at
    assert {("old", True), ("new", True)} <= found


@pytest.mark.parametrize("moment", [1, 2])
def test_a_kill_between_two_renames(here, monkeypatch, moment):
    """The old folder is found by readers, put back by the next run, and kept when that is refused or fails."""
    monkeypatch.setattr(_folders, "exchange", lambda a, b: False)
    make("old")
    rename = os.rename

    def kill(a, b):
        rename(a, b)
        os.kill(os.getpid(), signal.SIGKILL) if moment == 1 or not str(b).endswith("-old") else None

    child = fork()
    if child == 0:
        os.rename = kill
        make("new")
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert Path("out").exists() == (moment == 2)
    expected = "old" if moment == 1 else "new"
    assert word_of() == expected
    with pytest.raises(ValueError, match="holds a report already"):
        make("next", force=False)
    assert Path("out").is_dir()
    assert word_of() == expected
    make("next")
    assert (word_of(), names()) == ("next", ["out"])


def test_a_first_folder_appears_whole_or_not_at_all(here):
    places = events(lambda: make("new", "out/deep"))
    os.system("rm -r out")
    for at in range(1, places + 1, 17):
        assert killed(lambda: make("new", "out/deep"), at)
        assert not Path("out/deep").exists() or word_of("out/deep") == "new"
        make("next", "out/deep")
        assert names("out") == ["deep"]
        os.system("rm -r out")


def test_the_content_is_on_the_disk_before_it_takes_its_place(here, way, monkeypatch):
    make("old")
    calls = []
    for module, name in ((os, "fsync"), (os, "rename"), (_folders, "exchange")):
        real = getattr(module, name)

        def called(*args, name=name, real=real):
            of_folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append(f"{name} folder" if of_folder else name)
            return real(*args)

        monkeypatch.setattr(module, name, called)
    make("new")
    renames = ["exchange"] if way == "one step" else ["exchange", "rename", "rename"]
    assert calls == ["fsync", "fsync folder"] * 3 + ["fsync folder", *renames, "fsync folder"]


def test_a_killed_cross_validation_goes_on(here):
    """Its folder has one file for every result: each is there whole, or not at all."""

    def run():
        tasks = [Task(f"task {i}", _result, (i,)) for i in range(3)]
        return run_tasks(tasks, n_jobs=1, folder="cv", settings={"a": 1})

    run()
    expected = {name: (here / "cv" / name).read_bytes() for name in names("cv")}
    shutil.rmtree("cv")
    places = events(run)
    for at in range(1, places + 1, 11):
        shutil.rmtree("cv")
        assert killed(run, at)
        results = run()
        assert [r["x"].tolist() for r in results] == [[0.0] * 4, [1.0] * 4, [2.0] * 4]
        assert {name: (here / "cv" / name).read_bytes() for name in names("cv")} == expected


def _result(i):
    return {"x": np.full(4, float(i))}


# --- errors ---


@pytest.mark.parametrize("failing", ["exchange", "first rename", "second rename", "body", "stopped", "mkdir"])
def test_an_error_changes_nothing(here, monkeypatch, failing):
    make("old")
    rename, count = os.rename, iter(range(9))

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    def renames(a, b):
        full() if next(count) == ("first rename", "second rename").index(failing) else rename(a, b)

    expected = OSError
    with monkeypatch.context() as patch:
        if failing == "mkdir":
            patch.setattr(os, "mkdir", full)
        elif failing == "exchange":
            patch.setattr(_folders, "exchange", full)
        elif failing in ("body", "stopped"):
            expected = KeyError if failing == "body" else KeyboardInterrupt
        else:
            patch.setattr(_folders, "exchange", lambda a, b: False)
            patch.setattr(os, "rename", renames)
        with pytest.raises(expected), staged(Path("out"), CONTENTS, True) as folder:
            write_text(folder / "a.txt", "half")
            if expected is not OSError:
                raise expected
    assert (word_of(), names()) == ("old", ["out"])


def test_folders_on_the_way_are_removed_after_an_error(here):
    with pytest.raises(KeyError), staged(Path("new/deep/out"), CONTENTS, False):
        raise KeyError
    assert names() == []


# --- two runs at once ---


def test_a_second_run_is_refused_while_one_is_at_work(here, way):
    make("old")
    with staged(Path("out"), CONTENTS, True) as folder:
        for name in CONTENTS.files:
            write_text(folder / name, "first")
        os.symlink("out", "link")
        for other in ("out", "link", here / "out"):
            with pytest.raises(ValueError, match="another run is writing this folder"):
                make("second", other)
        make("other", "beside")  # another folder is another matter
        os.unlink("link")
        assert word_of() == "old"
    assert word_of() == "first"
    make("third")
    assert (word_of(), names()) == ("third", ["beside", "out"])


def test_many_runs_leave_one_whole_folder(here, way):
    """Threads at the same time: each ends well or is refused, and a reader sees whole folders only."""
    ended, refused, wrong = [], [], []

    def run(n):
        for i in range(20):
            try:
                make(f"{n} {i}")
                ended.append((n, i))
            except ValueError as error:
                refused.append(str(error))
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(ended) + len(refused) == 80
    assert all("another run is writing" in said for said in refused)
    assert word_of() in {f"{n} {i}" for n, i in ended}
    assert names() == ["out"]


def test_a_lock_that_a_kill_left_is_taken_over(here):
    _files.beside(here / "out", "-lock").touch()
    make("new")
    assert (word_of(), names()) == ("new", ["out"])


def test_a_system_without_locks(here, monkeypatch):
    monkeypatch.setattr(_files, "fcntl", None)
    make("old")
    make("new")
    assert (word_of(), names()) == ("new", ["out"])


# --- what is not ours ---


def test_a_link_to_the_folder_stays(here):
    make("old", "place")
    os.symlink("place", "link")
    make("new", "link")
    assert os.readlink("link") == "place"
    assert (word_of("place"), names()) == ("new", ["link", "place"])


def test_links_at_our_names_are_not_followed(here):
    make("mine", "precious")
    for end in ("-new", "-old"):
        os.symlink("precious", _files.beside(here / "out", end))
    assert readable(Path("out")) == Path("out")
    make("new", force=False)
    assert (word_of("precious"), word_of(), names()) == ("mine", "new", ["out", "precious"])
    os.symlink("precious/a.txt", _files.beside(here / "out", "-lock"))
    with pytest.raises(OSError, match="--out"):
        make("next")
    assert (word_of("precious"), word_of()) == ("mine", "new")


def test_mode_and_owner_are_kept(here, way):
    make("old")
    os.chmod("out", 0o2750)
    os.chmod("out/a.txt", 0o600)
    if os.geteuid() == 0:
        os.chown("out", 1234, 4321)
        os.chown("out/a.txt", 1234, 4321)
        os.chmod("out", 0o2750)
    before = [os.stat(path) for path in ("out", "out/a.txt", "out/b.txt")]
    make("new")
    after = [os.stat(path) for path in ("out", "out/a.txt", "out/b.txt")]
    assert [(s.st_mode, s.st_uid, s.st_gid) for s in after] == [(s.st_mode, s.st_uid, s.st_gid) for s in before]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["mark.json", "thesis.txt"], "such as 'thesis.txt'"),
        (["mark.json", "a.txt/"], "such as 'a.txt'"),
        (["a.txt"], "so that it is no report"),
        (["mark.json", ".hidden"], "such as '.hidden'"),
    ],
)
def test_files_of_others_are_never_replaced(here, there, said):
    for name in there:
        place = here / "out" / name
        place.parent.mkdir(exist_ok=True)
        place.mkdir() if name.endswith("/") else place.write_text("mine")
    for force in (False, True):
        with pytest.raises(ValueError, match=said):
            make("new", force=force)
    assert names("out") == sorted(name.rstrip("/") for name in there)
    assert names() == ["out"]


def test_what_comes_in_during_a_run_is_kept(here, way, monkeypatch):
    make("old")
    with (
        pytest.raises(ValueError, match="holds files that are not of a report"),
        staged(Path("out"), CONTENTS, True) as folder,
    ):
        write_text(folder / "a.txt", "new")
        Path("out/thesis.txt").write_text("mine")
    assert names("out") == ["a.txt", "b.txt", "mark.json", "thesis.txt"]
    os.unlink("out/thesis.txt")
    place = _folders._take_place

    def late(new, out):
        (out / "thesis.txt").write_text("mine")
        place(new, out)

    monkeypatch.setattr(_folders, "_take_place", late)
    make("new")
    assert Path("out/thesis.txt").read_text() == "mine"
    assert Path("out/a.txt").read_text() == "new"
    assert names() == ["out"]


def test_an_empty_folder_is_taken(here, way):
    Path("out").mkdir(mode=0o700)
    make("new", force=False)
    assert (word_of(), stat.S_IMODE(os.stat("out").st_mode)) == ("new", 0o700)


def test_a_mount_point_is_refused_at_once(here, monkeypatch):
    Path("out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with pytest.raises(ValueError, match="is a mount point"):
        make("new")
