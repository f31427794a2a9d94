"""The data sets of the experiments: looking, fetching, checking, reading. No network but a server of our own."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import lzma
import os
import socket
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.data import (
    DataDamaged,
    DataMissing,
    Dataset,
    File,
    Text,
    find,
    load,
    names,
    require,
    split,
    standardised,
)
from experiments.data import _sources as at
from experiments.data._archives import Archive, Either, Part
from experiments.data._sets import SETS, isolet_counts, shakespeare_lines

scipy_io = pytest.importorskip("scipy.io")
pytest.importorskip("sklearn")

REAL = os.environ.get("DGATING_DATA")  # before the fixture below hides it
CONTENT = b"so many bytes " * 40


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of our own, no folder named by the environment, no proxy before the server."""
    monkeypatch.delenv("DGATING_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "xdg" / "dgating"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


class Server(http.server.ThreadingHTTPServer):
    """``/good`` is ``CONTENT``, ``/short`` announces all of it and ends early; the rest is not found.

    ``/four`` is ``CONTENT`` too, its second half sent once four have asked.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []
        self.four = threading.Barrier(4, timeout=5)
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path not in ("/good", "/short", "/four"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100])
        if self.path == "/four":
            self.server.four.wait()
        if self.path != "/short":
            self.wfile.write(CONTENT[100:])

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as it:
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield it
        it.shutdown()
        thread.join()


def leaves(place: Path) -> list[Path]:
    return [path for path in place.rglob("*") if path.is_file()]


def put(place: Path, path: str, content: bytes) -> Path:
    (place / path).parent.mkdir(parents=True, exist_ok=True)
    (place / path).write_bytes(content)
    return place / path


def held(place: Path, path: str, content: bytes) -> File:
    """A file put into a folder, and how it is described."""
    put(place, path, content)
    return File(path, digest(content), None, len(content))


# looking and fetching


def test_a_missing_file_is_fetched_into_the_cache_once(
    server: Server, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = File("set/good.bin", digest(CONTENT), f"{server.url}/good", len(CONTENT))
    assert find(file) == cache / "set/good.bin"
    assert (cache / "set/good.bin").read_bytes() == CONTENT
    assert find(file) == cache / "set/good.bin"
    assert server.asked == ["/good"]
    assert leaves(cache) == [cache / "set/good.bin"]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "good" in shown.err


@pytest.mark.parametrize(
    ("sha256", "size", "said"),
    [(digest(b"other"), len(CONTENT), "sha256"), (None, len(CONTENT) + 1, f"received {len(CONTENT)}")],
)
def test_other_bytes_than_expected_are_not_kept(
    server: Server, cache: Path, sha256: str | None, size: int, said: str
) -> None:
    with pytest.raises(DataDamaged, match=said):
        find(File("set/good.bin", sha256, f"{server.url}/good", size))
    assert leaves(cache) == []


def test_a_transfer_that_ends_early_is_not_kept(server: Server, cache: Path) -> None:
    # not even where nothing else would show it: size and checksum are those of what came
    file = File("set/short.bin", digest(CONTENT[:100]), f"{server.url}/short", 100)
    with pytest.raises(DataMissing, match=f"ended after 100 of {len(CONTENT)} bytes"):
        find(file)
    assert leaves(cache) == []


def test_a_failed_download_keeps_what_was_there(server: Server, folder: Path) -> None:
    put(folder, "set/other.bin", b"other")
    with pytest.raises(DataMissing):
        find(File("set/gone.bin", digest(CONTENT), f"{server.url}/gone"), folder)
    assert leaves(folder) == [folder / "set/other.bin"]


def closed_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize("fault", ["404", "refused", "not asked for", "no official home"])
def test_missing_says_what_to_do(server: Server, cache: Path, fault: str) -> None:
    url = {
        "404": f"{server.url}/gone",
        "refused": f"http://127.0.0.1:{closed_port()}/x",
        "not asked for": f"{server.url}/good",
        "no official home": None,
    }[fault]
    with pytest.raises(DataMissing) as error:
        find(File("set/x.bin", digest(CONTENT), url), download=fault != "not asked for")
    for words in (fault, "FOLDER/set/x.bin", "--data FOLDER", "DGATING_DATA", *([url] if url else [])):
        assert words in str(error.value)
    assert isinstance(error.value, FileNotFoundError)
    assert leaves(cache) == []


def test_what_cannot_be_checked_is_not_downloaded() -> None:
    with pytest.raises(ValueError, match="checksum or a size"):
        File("x", None, "http://127.0.0.1/x")


def test_several_at_once_fetch_the_same_file(server: Server, cache: Path) -> None:
    file = File("set/good.bin", digest(CONTENT), f"{server.url}/four")
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: find(file), range(4))) == {cache / "set/good.bin"}
    assert len(server.asked) == 4
    assert (cache / "set/good.bin").read_bytes() == CONTENT
    assert leaves(cache) == [cache / "set/good.bin"]


def test_folder_then_environment_then_cache(
    server: Server, folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = tmp_path / "named"
    file = File("set/good.bin", digest(CONTENT), f"{server.url}/good")
    for place in (folder, named, cache):
        put(place, file.path, CONTENT)
    monkeypatch.setenv("DGATING_DATA", str(named))
    for place in (folder, named, cache):
        assert find(file, folder) == place / file.path
        (place / file.path).unlink()
    assert server.asked == []


def test_the_cache_is_in_the_home_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for empty in (lambda: monkeypatch.setenv("XDG_CACHE_HOME", ""), lambda: monkeypatch.delenv("XDG_CACHE_HOME")):
        empty()
        path = put(tmp_path, ".cache/dgating/set/x", CONTENT)
        assert find(File("set/x", digest(CONTENT))) == path


@pytest.mark.parametrize("name", ["--data", "DGATING_DATA"])
def test_a_folder_that_does_not_exist_is_no_reason_to_download(
    server: Server, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    if name != "--data":
        monkeypatch.setenv(name, str(gone))
    with pytest.raises(DataMissing, match=f"{name}: expected a folder"):
        find(File("x", digest(CONTENT), f"{server.url}/good"), gone if name == "--data" else None)
    assert server.asked == []


def test_a_damaged_file_in_the_folder(server: Server, folder: Path) -> None:
    file = File("set/good.bin", digest(CONTENT), f"{server.url}/good", len(CONTENT))
    path = put(folder, file.path, CONTENT[:-1])
    with pytest.raises(DataDamaged, match=f"expected {len(CONTENT)} bytes, received {len(CONTENT) - 1}.*/good again"):
        find(file, folder)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DataDamaged, match=f"expected sha256 {file.sha256}, received {digest(CONTENT[:-1] + b'?')}"):
        find(file, folder)
    path.write_bytes(CONTENT)
    os.utime(path, ns=(1, 1))  # hashed anew even within the clock's tick
    assert find(file, folder) == path
    assert server.asked == []


# names


def test_names_and_unknown_names() -> None:
    assert set(names()) == {
        *("mnist", "fashion_mnist", "isolet", "coil20", "madelon", "har265", "har", "mice_protein"),
        *("wine_red", "wine_white", "tinyshakespeare", "shakespeare", "cifar10", "cifar100", "svhn"),
        *("cifar10_30k", "digits", "diabetes"),
    }
    with pytest.raises(ValueError, match=r"mnist, fashion_mnist.*received 'mnits'"):
        load("mnits")


def test_require_fetches_all_and_refuses_unknown_names_first(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File("set/good.bin", digest(CONTENT), f"{server.url}/good")
    monkeypatch.setitem(SETS, "madelon", replace(SETS["madelon"], wanted=(file,)))
    with pytest.raises(ValueError, match="mnits"):
        require(["madelon", "mnits"])
    assert server.asked == []
    require(["madelon", "digits"])
    assert leaves(cache) == [cache / "set/good.bin"]
    monkeypatch.setitem(SETS, "svhn", replace(SETS["svhn"], wanted=(replace(file, path="set/other.bin"),)))
    with pytest.raises(DataMissing, match=r"set/other\.bin"):
        require(["madelon", "svhn"], download=False)


def files_of(source: File | Archive | Either) -> list[File]:
    if isinstance(source, Either):
        return files_of(source.first) + files_of(source.second)
    return [source] if isinstance(source, File) else list(source.files)


def test_everything_but_one_text_has_a_checksum_and_every_set_a_home() -> None:
    for name, source in SETS.items():
        for wanted in source.wanted:
            files = files_of(wanted)
            assert any(file.url for file in files), name
            for file in files:
                assert file.sha256 is not None or file.path == "shakespeare/t8.shakespeare.txt"
                assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
                assert file.url is None or file.url.rsplit("/", 1)[-1] == file.path.rsplit("/", 1)[-1]


# reading small files of every format


def use(monkeypatch: pytest.MonkeyPatch, name: str, *wanted: File | Archive | Either) -> None:
    """Let a set be read from these, unchecked by what only the whole set fulfils."""
    monkeypatch.setitem(SETS, name, replace(SETS[name], wanted=wanted, check=lambda found: ""))


def table(name: str, folder: Path) -> Dataset:
    found = load(name, folder, download=False)
    assert isinstance(found, Dataset)
    return found


def idx(values: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(head + values.astype(np.uint8).tobytes())


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, X_test = (np.random.default_rng(n).integers(0, 256, (n, 28, 28)) for n in (5, 3))
    y, y_test = np.array([7, 0, 9, 1, 1]), np.array([2, 3, 4])
    use(monkeypatch, name, *(held(folder, f"m/{i}.gz", idx(a)) for i, a in enumerate((X, y, X_test, y_test))))
    found = table(name, folder)
    assert found.X.dtype == np.uint8
    assert found.y.dtype == np.int64
    assert found.X.flags.writeable  # torch.from_numpy warns of others
    for seen, expected in zip((found.X, found.y, found.X_test, found.y_test), (X, y, X_test, y_test), strict=True):
        np.testing.assert_array_equal(seen, expected)


def test_a_file_of_another_format_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = gzip.compress(b"<html>")
    use(monkeypatch, "mnist", *(held(folder, f"m/{i}.gz", wrong) for i in range(4)))
    with pytest.raises(DataDamaged, match=r"mnist.*0\.gz.*idx"):
        load("mnist", folder)


def svhn(X: np.ndarray, y: np.ndarray) -> bytes:
    out = io.BytesIO()
    scipy_io.savemat(out, {"X": X.transpose(2, 3, 1, 0), "y": y.reshape(-1, 1).astype(np.uint8)}, do_compression=True)
    return out.getvalue()


def test_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, X_test = (np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), np.uint8) for n in (4, 2))
    use(
        monkeypatch,
        "svhn",
        held(folder, "svhn/train.mat", svhn(X, np.array([1, 10, 9, 10]))),
        held(folder, "svhn/test.mat", svhn(X_test, np.array([10, 2]))),
    )
    found = table("svhn", folder)
    assert found.X.dtype == np.uint8
    np.testing.assert_array_equal(found.X, X)
    np.testing.assert_array_equal(found.X_test, X_test)
    assert found.y.tolist() == [1, 0, 9, 0]
    assert found.y_test is not None
    assert found.y_test.tolist() == [0, 2]


def batches(labels: int) -> tuple[dict[str, bytes], np.ndarray, np.ndarray]:
    """Files of two records each, and all pictures and fine labels in order."""
    original = at.CIFAR10 if labels == 1 else at.CIFAR100
    rows = np.random.default_rng(0).integers(0, 10, (2 * len(original.parts), labels + 3072), np.uint8)
    content = {part.path: rows[2 * i : 2 * i + 2].tobytes() for i, part in enumerate(original.parts)}
    return content, rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1].astype(np.int64)


def tar(content: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path, b in content.items():
            member = tarfile.TarInfo(f"./{path}")
            member.size = len(b)
            archive.addfile(member, io.BytesIO(b))
    return out.getvalue()


def small(original: Archive, content: dict[str, bytes], *files: File) -> Archive:
    """The archive with other contents, their checksums instead of the official ones."""
    assert set(content) == {part.path for part in original.parts}
    parts = tuple(Part(path, digest(b)) for path, b in content.items())
    return replace(original, parts=parts, files=files)


WAYS = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}


@pytest.mark.parametrize("way", ["tar", *WAYS])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar(name: str, way: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, X, y = batches(1 if name == "cifar10" else 2)
    original = at.CIFAR10 if name == "cifar10" else at.CIFAR100
    files = []
    if way == "tar":
        # members in another order than they are read in
        files.append(held(folder, f"{name}/all.tar.gz", tar(dict(reversed(content.items())))))
    else:
        for path, b in content.items():
            put(folder, f"{name}/{path}{way}", WAYS[way](b))
    use(monkeypatch, name, small(original, content, *files))
    found = table(name, folder)
    assert found.X_test is not None
    assert found.y_test is not None
    assert found.X.dtype == np.uint8
    assert found.X.flags.writeable
    np.testing.assert_array_equal(np.concatenate([found.X, found.X_test]), X)
    np.testing.assert_array_equal(np.concatenate([found.y, found.y_test]), y)
    assert len(found.X_test) == 2


def test_cifar_with_batches_missing_lists_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, _, _ = batches(1)
    archive = File("cifar10/all.tar.gz", digest(b""), "http://127.0.0.1/all.tar.gz")
    for path, b in content.items():
        if "4" not in path and "5" not in path:
            put(folder, f"cifar10/{path}.xz", lzma.compress(b))
    use(monkeypatch, "cifar10", small(at.CIFAR10, content, archive))
    for look in (load, lambda name, folder, download: require([name], folder, download=download)):
        with pytest.raises(
            DataMissing, match=r"all\.tar\.gz.*lacks cifar-10-batches-bin/data_batch_4\.bin, [^,]*5\.bin\."
        ):
            look("cifar10", folder, download=False)


@pytest.mark.parametrize("fault", ["digit", "cut", "no member", "not a tar"])
def test_a_damaged_part_is_named(fault: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, _, _ = batches(2)
    path, files = "cifar-100-binary/test.bin", []
    if fault in ("digit", "cut"):
        for p, b in content.items():
            put(folder, f"cifar100/{p}.xz", lzma.compress(b))
        packed = lzma.compress(content[path][:-1] + b"?") if fault == "digit" else lzma.compress(content[path])[:-40]
        put(folder, f"cifar100/{path}.xz", packed)
        said = r"test\.bin\.xz"
    else:
        b = b"nothing" if fault == "not a tar" else tar({path: content[path]})
        files = [held(folder, "cifar100/all.tar.gz", b)]  # whoever packed it, its own checksum agrees
        said = r"all\.tar\.gz"
    use(monkeypatch, "cifar100", small(at.CIFAR100, content, *files))
    require(["cifar100"], folder)  # does not read it
    with pytest.raises(DataDamaged, match=said):
        load("cifar100", folder)


def motion(columns: int) -> tuple[dict[str, bytes], np.ndarray]:
    """The official files, of four rows to train on and two to test on."""
    X = np.random.default_rng(1).normal(size=(6, columns)).round(7)
    rows = [" ".join(f"{x: .7e}" for x in row) for row in X]
    texts = {
        "features.txt": "".join(f"{i + 1} a({i})-b\n" for i in range(columns)),
        "train/X_train.txt": "\n".join(rows[:4]) + "\n",
        "train/y_train.txt": "5\n1\n6\n1\n",
        "test/X_test.txt": "\n".join(rows[4:]) + "\n",
        "test/y_test.txt": "2\n3\n",
    }
    return {f"UCI HAR Dataset/{path}": text.encode() for path, text in texts.items()}, X


def zipped(content: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, b in content.items():
            archive.writestr(path, b)
    return out.getvalue()


@pytest.mark.parametrize("way", ["archive in archive", "archive", "unpacked", "unpacked.gz"])
@pytest.mark.parametrize("name", ["har", "har265"])
def test_har(name: str, way: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, X = motion(270)
    inner, files = zipped(content), []
    if way == "archive in archive":
        outer = zipped({"UCI HAR Dataset.names": b"words", "UCI HAR Dataset.zip": inner})
        files = [held(folder, "uci_har/human+activity.zip", outer)]
    elif way == "archive":
        files = [File("uci_har/human+activity.zip", digest(b"")), held(folder, "uci_har/UCI HAR Dataset.zip", inner)]
    else:
        for path, b in content.items():
            put(folder, f"uci_har/{path}" + way.removeprefix("unpacked"), WAYS[way.removeprefix("unpacked")](b))
    official = small(at.HAR, content, *files)
    use(monkeypatch, name, official if name == "har" else Either(at.HAR265, official))
    found, columns = table(name, folder), 270 if name == "har" else 265
    assert found.X_test is not None
    assert found.y_test is not None
    np.testing.assert_array_equal(np.concatenate([found.X, found.X_test]), X[:, :columns])
    assert found.y.tolist() == [4, 0, 5, 0]
    assert found.y_test.tolist() == [1, 2]
    assert found.feature_names is not None
    assert len(found.feature_names) == columns
    assert found.feature_names[-1] == f"a({columns - 1})-b"


def test_har265_from_its_own_files_before_the_official_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, X = motion(265)
    own = {Path(path).name: b for path, b in content.items()}
    for path, b in own.items():
        put(folder, f"uci_har_time265/{path}.gz", gzip.compress(b))
    use(monkeypatch, "har265", Either(small(at.HAR265, own), at.HAR))
    np.testing.assert_array_equal(table("har265", folder).X, X[:4])
    (folder / "uci_har_time265/y_test.txt.gz").unlink()
    with pytest.raises(
        DataMissing, match=r"uci_har_time265.*lacks y_test\.txt.*human\+activity.*DGATING_DATA"
    ) as error:
        load("har265", folder, download=False)
    assert at.HAR.files[0].url in str(error.value)


LETTERS = {"isolet1+2+3+4.data": b"-0.5000, 0.2500, 1.\n0.1000, 1.0000, 26.\n", "isolet5.data": b"0.0000,-1.0000,2\n"}


def compressed(content: bytes) -> bytes:
    """What ``compress`` may write for fewer than 256 bytes: every byte as a code of nine bits."""
    assert len(content) < 256
    codes = sum(byte << 9 * i for i, byte in enumerate(content))
    return b"\x1f\x9d\x90" + codes.to_bytes((9 * len(content) + 7) // 8, "little")


@pytest.mark.parametrize("way", [".Z in zip", ".Z", ".gz", ""])
def test_isolet(way: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    if ".Z" in way:
        pytest.importorskip("uncompresspy")
    if way == ".Z in zip":
        packed = zipped({f"{path}.Z": compressed(b) for path, b in LETTERS.items()})
        files = [held(folder, "isolet/isolet.zip", packed)]
    else:
        for path, b in LETTERS.items():
            put(folder, f"isolet/{path}{way}", compressed(b) if way == ".Z" else WAYS[way](b))
    use(monkeypatch, "isolet", replace(at.ISOLET, files=tuple(files)))
    found = table("isolet", folder)
    np.testing.assert_array_equal(found.X, [[-0.5, 0.25], [0.1, 1]])
    np.testing.assert_array_equal(found.X_test, [[0, -1]])
    assert found.y.tolist() == [0, 25]
    assert found.y.dtype == np.int64
    assert found.y_test is not None
    assert found.y_test.tolist() == [1]


@pytest.mark.parametrize("way", ["zip", ".Z", "download"])
def test_unix_compress_without_its_package(
    way: str, server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    files = [File("isolet/isolet.zip", digest(CONTENT), f"{server.url}/good")]
    if way == "zip":
        put(folder, "isolet/isolet.zip", CONTENT)
    elif way == ".Z":
        for path, b in LETTERS.items():
            put(folder, f"isolet/{path}.Z", compressed(b))
    use(monkeypatch, "isolet", replace(at.ISOLET, files=tuple(files)))
    with pytest.raises(DataMissing, match=r"pip install uncompresspy.*gzip -d.*isolet/isolet5\.data"):
        require(["isolet"], folder)  # before the run, not in it
    assert server.asked == []


def letters(F: int = 238) -> Dataset:
    counts, test = np.full(26, 240), np.full(26, 60)
    counts[5], test[12] = F, 59
    y, y_test = np.repeat(np.arange(26), counts), np.repeat(np.arange(26), test)
    return Dataset(np.zeros((len(y), 617)), y, np.ones((len(y_test), 617)), y_test)


def test_isolet_is_checked_by_what_is_known() -> None:
    good = letters()
    assert len(good.X) == 6238
    assert good.X_test is not None
    assert isolet_counts(good) == ""
    assert "238" in isolet_counts(letters(F=239))
    assert isolet_counts(replace(good, X=good.X[:, 1:])) != ""
    assert isolet_counts(replace(good, X_test=2 * good.X_test)) != ""
    assert isolet_counts(replace(good, y=good.y - 1)) != ""
    nothing = good.X.copy()
    nothing[0, 0] = np.nan
    assert isolet_counts(replace(good, X=nothing)) != ""


def test_isolet_of_other_counts_is_refused(folder: Path) -> None:
    for path, b in LETTERS.items():
        put(folder, f"isolet/{path}", b)
    with pytest.raises(DataDamaged, match="isolet: expected 617 columns"):
        load("isolet", folder)


def verses(lines: int = 124456) -> bytes:
    head, tail = b"This is the 100th Etext file presented", b"The Complete Works of William Shakespeare\n\n\n\n"
    return head + b"\n" * (lines - 4) + tail


def test_shakespeare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = verses()
    for content, said in (
        (good, ""),
        (verses(124455), "124455"),
        (b"x" + good, "another text"),
        (good[:-8], "another text"),
    ):
        file = held(folder, "shakespeare/t8.shakespeare.txt", content)
        monkeypatch.setitem(SETS, "shakespeare", replace(SETS["shakespeare"], wanted=(file,)))
        if content is good:
            assert load("shakespeare", folder) == Text(good.decode())
        else:
            with pytest.raises(DataDamaged, match=said):
                load("shakespeare", folder)
    assert shakespeare_lines(Text(good.decode())) == ""


def test_the_official_text_is_checked_by_its_size(folder: Path) -> None:
    put(folder, "shakespeare/t8.shakespeare.txt", verses())
    with pytest.raises(DataDamaged, match="expected 5458199 bytes"):
        load("shakespeare", folder)


def test_tinyshakespeare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "tinyshakespeare", held(folder, "t/input.txt", b"First Citizen:\r\nSpeak.\n"))
    assert load("tinyshakespeare", folder) == Text("First Citizen:\r\nSpeak.\n")


def test_mice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "MouseID,DYRK1A_N,BAD_N,Genotype,Treatment,Behavior,class\n"
        "309_1,0.5,,Control,Saline,C/S,t-CS-s\n309_2,-1.25,2,Control,Saline,S/C,c-SC-m\n9_1,,3,x,y,z,t-CS-s\n"
    )
    use(monkeypatch, "mice_protein", held(folder, "m/mice.csv", text.encode()))
    found = table("mice_protein", folder)
    np.testing.assert_array_equal(found.X, [[0.5, np.nan], [-1.25, 2], [np.nan, 3]])
    assert found.y.tolist() == [1, 0, 1]
    assert found.y.dtype == np.int64
    assert found.feature_names == ("DYRK1A_N", "BAD_N")
    assert found.X_test is None


@pytest.mark.parametrize("name", ["wine_red", "wine_white"])
def test_wine(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '"fixed acidity";"pH";"quality"\n7.4;3.51;5\n6;3;8\n'
    use(monkeypatch, name, held(folder, "w/wine.csv", text.encode()))
    found = table(name, folder)
    np.testing.assert_array_equal(found.X, [[7.4, 3.51], [6, 3]])
    np.testing.assert_array_equal(found.y, [5, 8])
    assert found.y.dtype == np.float64
    assert found.feature_names == ("fixed acidity", "pH")


def mat(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    scipy_io.savemat(out, arrays)
    return out.getvalue()


def test_madelon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.array([[476, 500, 3], [1, 2, 999]], np.int16)
    use(monkeypatch, "madelon", held(folder, "m/m.mat", mat(X=X, Y=np.array([[-1], [1]], np.int16))))
    found = table("madelon", folder)
    np.testing.assert_array_equal(found.X, X)
    assert found.X.dtype == np.float64
    assert found.y.tolist() == [0, 1]


def test_coil20_is_made_smaller_and_keeps_its_orientation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.zeros((32, 32))
    picture[:8, 16:] = 1  # upright: the upper right corner
    X = np.stack([picture.T.ravel(), np.full(1024, 0.25)])
    use(monkeypatch, "coil20", held(folder, "c/c.mat", mat(X=X, Y=np.array([[20], [1]], np.uint8))))
    found = table("coil20", folder)
    assert found.X.shape == (2, 400)
    assert found.X.dtype == np.float64
    assert found.y.tolist() == [19, 0]
    np.testing.assert_allclose(found.X[1], 0.25)
    upright = found.X[0].reshape(20, 20).T
    assert upright[1, 18] == pytest.approx(1, abs=0.1)
    assert np.abs(upright[[1, 18, 18], [1, 1, 18]]).max() < 0.1
    assert upright.mean() == pytest.approx(picture.mean(), abs=0.01)


def test_tables_of_scikit_learn() -> None:
    digits, diabetes = load("digits"), load("diabetes")
    assert isinstance(digits, Dataset)
    assert isinstance(diabetes, Dataset)
    assert digits.X.shape == (1797, 8, 8)
    assert digits.X.dtype == np.uint8
    assert digits.X.max() == 16
    assert np.bincount(digits.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert diabetes.X.shape == (442, 10)
    assert diabetes.X[0, 0] == 59  # years: raw, not scaled
    assert diabetes.y.dtype == np.float64
    assert diabetes.feature_names is not None
    assert diabetes.feature_names[:2] == ("age", "sex")


# splitting, standardising


def test_split_keeps_shares_of_classes_and_every_row() -> None:
    y = np.repeat([0, 1, 2], [100, 50, 10])
    whole = Dataset(np.arange(160.0).reshape(-1, 1), y, feature_names=("a",))
    parts = split(whole, 0.2, 3)
    assert parts.X_test is not None
    assert parts.y_test is not None
    assert np.bincount(parts.y_test).tolist() == [20, 10, 2]
    assert np.sort(np.concatenate([parts.X, parts.X_test]).ravel()).tolist() == whole.X.ravel().tolist()
    np.testing.assert_array_equal(y[parts.X.ravel().astype(int)], parts.y)
    assert parts.feature_names == ("a",)
    np.testing.assert_array_equal(split(whole, 0.2, 3).X, parts.X)
    assert not np.array_equal(split(whole, 0.2, 4).X, parts.X)


def test_split_of_numbers_and_of_what_is_split() -> None:
    numbers = Dataset(np.arange(10.0).reshape(-1, 1), np.arange(10.0))  # every class once, were they classes
    parts = split(numbers, 0.3, 0)
    assert parts.X_test is not None
    assert len(parts.X_test) == 3
    with pytest.raises(ValueError, match="without a test part"):
        split(parts, 0.3, 0)


def test_standardised_is_that_of_scikit_learn() -> None:
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    X, X_test = rng.normal(3, [1, 10, 0.1], (5000, 3)), rng.normal(2, 5, (9, 3))
    found, oracle = standardised(Dataset(X, X[:, 0], X_test)), StandardScaler().fit(X)
    assert found.X_test is not None
    assert found.X.dtype == found.X_test.dtype == np.float32
    np.testing.assert_allclose(found.X, oracle.transform(X), atol=1e-5)
    np.testing.assert_allclose(found.X_test, oracle.transform(X_test), rtol=1e-5)
    np.testing.assert_array_equal(found.y, X[:, 0])


def test_standardised_constant_columns_are_zero_throughout() -> None:
    X = np.full((1000, 2), 0.1)
    X[:, 1] = np.arange(1000)
    assert X.std(0)[0] > 0  # rounding: dividing by it would make noise of it
    found = standardised(Dataset(X, X[:, 1], np.array([[0.2, 3]])))
    assert found.X_test is not None
    assert not found.X[:, 0].any()
    assert found.X_test[0, 0] == 0
    assert found.X_test[0, 1] < 0


def test_standardised_missing_values_become_the_mean() -> None:
    nan = np.nan
    X = np.array([[1, nan, nan], [3, 5, nan], [nan, 9, nan]])
    found = standardised(Dataset(X, np.zeros(3), np.array([[nan, 9, 1]])))
    np.testing.assert_allclose(found.X, [[-1, 0, 0], [1, -1, 0], [0, 1, 0]])
    np.testing.assert_allclose(found.X_test, [[0, 1, 0]])


def test_standardised_pictures_are_rows_of_pixels() -> None:
    X = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 4), np.uint8)
    found = standardised(Dataset(X, np.zeros(50, np.int64)))
    assert found.X.shape == (50, 48)
    np.testing.assert_allclose(found.X.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(found.X.std(0), 1, atol=1e-6)
    assert np.corrcoef(found.X[:, 17], X[:, 1, 0, 1])[0, 1] == pytest.approx(1)
    assert found.X_test is None


# the real files, where DGATING_DATA names a folder that has them


def real(name: str) -> Dataset | Text:
    if not REAL:
        pytest.skip("DGATING_DATA names no folder")
    try:
        require([name], REAL, download=False)
    except DataMissing as error:
        pytest.skip(str(error))
    return load(name, REAL, download=False)


LETTER, MICE, WHITE = [240] * 5 + [238] + [240] * 20, [150, 135, 150, 135, 135, 105, 135, 135], [20, 163, 1457, 2198]


@pytest.mark.parametrize(
    ("name", "shape", "test_rows", "counts"),
    [
        ("mnist", (60000, 28, 28), 10000, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]),
        ("fashion_mnist", (60000, 28, 28), 10000, [6000] * 10),
        ("isolet", (6238, 617), 1559, LETTER),
        ("coil20", (1440, 400), None, [72] * 20),
        ("madelon", (2600, 500), None, [1300] * 2),
        ("har265", (7352, 265), 2947, [1226, 1073, 986, 1286, 1374, 1407]),
        ("har", (7352, 561), 2947, [1226, 1073, 986, 1286, 1374, 1407]),
        ("mice_protein", (1080, 77), None, MICE),
        ("wine_red", (1599, 11), None, [10, 53, 681, 638, 199, 18]),
        ("wine_white", (4898, 11), None, [*WHITE, 880, 175, 5]),
        ("cifar10", (50000, 3, 32, 32), 10000, [5000] * 10),
        ("cifar10_30k", (30000, 3, 32, 32), 10000, None),
        ("cifar100", (50000, 3, 32, 32), 10000, [500] * 100),
        ("svhn", (73257, 3, 32, 32), 26032, None),
    ],
)
def test_real_tables(name: str, shape: tuple[int, ...], test_rows: int | None, counts: list[int] | None) -> None:
    found = real(name)
    assert isinstance(found, Dataset)
    assert found.X.shape == shape
    assert found.X.dtype == (np.uint8 if len(shape) > 2 else np.float64)
    assert found.y.shape == shape[:1]
    assert found.feature_names is None or len(found.feature_names) == shape[1]
    if test_rows is None:
        assert found.X_test is None
        assert found.y_test is None
    else:
        assert found.X_test is not None
        assert found.y_test is not None
        assert found.X_test.shape == (test_rows, *shape[1:])
        assert found.y_test.shape == (test_rows,)
        np.testing.assert_array_equal(np.unique(found.y_test), np.unique(found.y))
    values, seen = np.unique(found.y, return_counts=True)
    if counts is not None:
        assert seen.tolist() == counts
    assert values[0] == (3 if name.startswith("wine") else 0)
    assert found.y.dtype == (np.float64 if name.startswith("wine") else np.int64)
    assert np.isnan(found.X).sum() == (1396 if name == "mice_protein" else 0)


def test_real_letters_are_in_the_rows_they_belong_to() -> None:
    found = real("isolet")
    assert isinstance(found, Dataset)
    # the nearest mean of a class tells most letters: rows and labels belong together
    means = np.stack([found.X[found.y == k].mean(0) for k in range(26)])
    assert found.X_test is not None
    nearest = ((found.X_test[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == found.y_test).mean() > 0.85


@pytest.mark.parametrize(
    ("name", "length", "distinct", "begins"),
    [("tinyshakespeare", 1115394, 65, "First Citizen:\n"), ("shakespeare", 5458199, None, "This is the 100th Etext")],
)
def test_real_texts(name: str, length: int, distinct: int | None, begins: str) -> None:
    found = real(name)
    assert isinstance(found, Text)
    assert len(found.text) == length
    assert found.text.startswith(begins)
    assert distinct is None or len(set(found.text)) == distinct
