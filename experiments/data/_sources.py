"""The files of every data set: names, checksums, homes.

Where the checksums come from:

* read off files whose bytes are the official ones (MNIST, Fashion-MNIST, COIL-20, MADELON, mice, wine, tinyshakespeare,
  the labels of the activities): the md5 of the MNIST and Fashion-MNIST files are the published ones;
* CIFAR-10, CIFAR-100: the authors print the md5 of both archives (c32a1d4ab5d03f1284b67883e8d87530 and
  03b5dce01913d631647c71ecec9e9cb8); the sha256 here are those that JuliaML/MLDatasets.jl checks. The batches of
  CIFAR-10 were hashed; for those of CIFAR-100, ankane/torchvision-ruby states the sha256;
* SVHN: pytorch/vision checks the md5 e26dedcc434d2e4c54c9b2d4a06d8373 and eb5a983be6a315427106f1b164d9cef3 and, in
  its prototype of data sets, these sha256;
* UCI prints no checksums. That of the inner archive of activities is what Julia and Python loaders have checked for
  years; those of the outer one and of ISOLET were recorded by people who downloaded them;
* t8.shakespeare.txt: no source states one. Its size and its count of lines are known.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.data._archives import Archive, Part
from experiments.data._files import File

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SKFEATURE = "https://raw.githubusercontent.com/jundongl/scikit-feature/master/skfeature/data/"
_UCI = "https://archive.ics.uci.edu/"
_KRIZ = "https://www.cs.toronto.edu/~kriz/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"


def _file(folder: str, home: str, name: str, size: int | None, sha256: str | None) -> File:
    return File(f"{folder}/{name}", sha256, home + name, size)


def _idx(folder: str, home: str, sizes: tuple[int, ...], sha256: tuple[str, ...]) -> tuple[File, ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    rows = zip(parts, sizes, sha256, strict=True)
    return tuple(_file(folder, home, f"{part}-ubyte.gz", size, digest) for part, size, digest in rows)


MNIST = _idx(
    "mnist",
    _MNIST,
    (9912422, 28881, 1648877, 4542),
    (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
)

FASHION_MNIST = _idx(
    "fashion_mnist",
    _FASHION,
    (26421880, 29515, 4422102, 5148),
    (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
)

COIL20 = _file(
    "coil20",
    _SKFEATURE,
    "COIL20.mat",
    3024549,
    "4595ebdda07f47b0eb014fcfaddc22b452f9aed9c1d9261a0d5bc336c1ee1344",
)

MADELON = _file(
    "madelon",
    _SKFEATURE,
    "madelon.mat",
    1496573,
    "7dc9c9ff8d902651948e2df7f9cb6ed38c5d91e4c4159914cecb1ddbc7def12c",
)

MICE_PROTEIN = _file(
    "mice_protein",
    # at a commit: UCI's own file is an .xls
    "https://raw.githubusercontent.com/lasso-net/lassonet/b313062fde737f5b3c917267c0d866c13e59fd2a/examples/",
    "Data_Cortex_Nuclear.csv",
    1010610,
    "1d6722b089db85dccfcb84d62e7299dcffd17b41223c3da54321890b63fff7ad",
)

WINE_RED = _file(
    "wine_quality",
    _UCI + "ml/machine-learning-databases/wine-quality/",
    "winequality-red.csv",
    84199,
    "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
)

WINE_WHITE = _file(
    "wine_quality",
    _UCI + "ml/machine-learning-databases/wine-quality/",
    "winequality-white.csv",
    264426,
    "76c3f809815c17c07212622f776311faeb31e87610d52c26d87d6e361b169836",
)

TINYSHAKESPEARE = _file(
    "tinyshakespeare",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
    "input.txt",
    1115394,
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)

SHAKESPEARE = _file(
    "shakespeare",
    "https://ocw.mit.edu/ans7870/6/6.006/s08/lecturenotes/files/",
    "t8.shakespeare.txt",
    5458199,
    None,
)

SVHN = (
    _file(
        "svhn",
        _SVHN,
        "train_32x32.mat",
        182040794,
        "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    ),
    _file(
        "svhn",
        _SVHN,
        "test_32x32.mat",
        64275384,
        "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    ),
)

_BATCHES = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}

CIFAR10 = Archive(
    "cifar10",
    tuple(Part(f"cifar-10-batches-bin/{name}.bin", sha256) for name, sha256 in _BATCHES.items()),
    (
        _file(
            "cifar10",
            _KRIZ,
            "cifar-10-binary.tar.gz",
            170052171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
)

# three of the five training batches: for folders that hold no more
CIFAR10_30K = replace(CIFAR10, parts=tuple(p for p in CIFAR10.parts if not p.path.endswith(("_4.bin", "_5.bin"))))

CIFAR100 = Archive(
    "cifar100",
    (
        Part("cifar-100-binary/train.bin", "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"),
        Part("cifar-100-binary/test.bin", "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"),
    ),
    (
        _file(
            "cifar100",
            _KRIZ,
            "cifar-100-binary.tar.gz",
            168513733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
)

ISOLET = Archive(
    "isolet",
    # no checksums: two texts are in use, with the same rows in another order (see the loader)
    (Part("isolet1+2+3+4.data"), Part("isolet5.data")),
    (
        _file(
            "isolet",
            _UCI + "static/public/54/",
            "isolet.zip",
            None,
            "fe2e0d45f1057d112e051d309070992fc178e7f6922cc7b4e8b2bd310303a053",
        ),
    ),
    ending=".Z",
)

_LABELS = {
    "train": "415b3357e2e2d5e70a45c781947c6bdd80e0410a579d862eedcd6bbce3c694ef",
    "test": "2a94cb53ca46b956c1b2aebd4a09a72badd8a8e9ea9cdfe9f31b3306a08666bb",
}

HAR = Archive(
    "uci_har",
    (
        Part(
            "UCI HAR Dataset/features.txt",
            "b384889885b1c8680ecf250e0e605b4c79536cdf09ce9f2fa7225a3c6773b5c7",
        ),
        Part(
            "UCI HAR Dataset/train/X_train.txt",
            "9c1246099c8d5463779eec5a3845cc3898df9d8c715441ab2a1232d4421fc42f",
        ),
        Part("UCI HAR Dataset/train/y_train.txt", _LABELS["train"]),
        Part(
            "UCI HAR Dataset/test/X_test.txt",
            "99035209add50d17650e847d8a4658d784a5707466ebb7c2deb97c28e5250a78",
        ),
        Part("UCI HAR Dataset/test/y_test.txt", _LABELS["test"]),
    ),
    (
        _file(
            "uci_har",
            _UCI + "static/public/240/",
            "human+activity+recognition+using+smartphones.zip",
            61005872,
            "c00b803081a5c797cd5e4b83700a9810b38d53d9d84e01917e090e1fdbc81031",
        ),
        # what UCI offered before, and what the archive above holds
        File(
            "uci_har/UCI HAR Dataset.zip",
            "2045e435c955214b38145fb5fa00776c72814f01b203fec405152dac7d5bfeb0",
            bytes=60999314,
        ),
    ),
    inner="UCI HAR Dataset.zip",
)

HAR265 = Archive(
    "uci_har_time265",
    (
        Part("features.txt", "f4a5088405facfcf393d421fc5af81386085470d76c3e98906924b776934a894"),
        Part("X_train.txt", "2fb612b1cd56c7dccdfb418e54b1c4a68e3fe39ae51f25e879ecca831fdf1e32"),
        Part("y_train.txt", _LABELS["train"]),
        Part("X_test.txt", "1c698e3a9a00b6e97ed3f76a0ace91a0791dc6f2379b643a161eeeb98daa057b"),
        Part("y_test.txt", _LABELS["test"]),
    ),
)
