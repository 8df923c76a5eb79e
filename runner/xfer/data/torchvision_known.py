"""What is known of torchvision's data sets before their files are there: how many images and classes, from where, how large.

Addresses are those in torchvision 0.29's own classes, which do the downloading; sizes are left out where nobody states them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xfer.data.announced import Download, spread
from xfer.data.array_sets import DIGITS, FASHION, MNIST_COUNTS, OBJECTS
from xfer.data.cifar import ADDRESS, CIFAR10, CIFAR100
from xfer.data.torchvision_arrays import EMNIST_CLASSES, KUZUSHIJI


@dataclass(frozen=True)
class Known:
    """`images` per split ('' where it has none): a total, spread evenly, or the number of each class. `files` (name and size in
    bytes) lie below `address` and are put into `folder` below the root."""

    classes: int | tuple[str, ...]
    images: Mapping[str, int | tuple[int, ...]]
    address: str
    files: Mapping[str, int | None]
    folder: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes; by number where only the files name them."""
        return self.classes if isinstance(self.classes, tuple) else tuple(map(str, range(self.classes)))

    @property
    def counts(self) -> dict[str, tuple[int, ...]]:
        """Per split, images of each class."""
        return {split: n if isinstance(n, tuple) else spread(n, len(self.names)) for split, n in self.images.items()}

    def downloads(self, root: Path) -> tuple[Download, ...]:
        """What torchvision will put where."""
        return tuple(Download(self.address + name, str(root / self.folder / name), size) for name, size in self.files.items())


def _idx(*sizes: int | None) -> dict[str, int | None]:
    """The four files of MNIST and its relatives."""
    names = [f"{split}-{kind}-ubyte.gz" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return dict(zip(names, sizes or (None,) * len(names), strict=True))


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"
_CLIP = "https://openaipublic.azureedge.net/clip/data/"
_EMNIST = {
    "byclass": (697_932, 116_323),
    "bymerge": (697_932, 116_323),
    "balanced": (112_800, 18_800),
    "letters": (124_800, 20_800),
    "digits": (240_000, 40_000),
    "mnist": (60_000, 10_000),
}
_TEN_THOUSANDS = {"train": 60_000, "test": 10_000}

# By name, and by 'name/variant' where the variants differ. StanfordCars is not here: it can't be downloaded any more.
KNOWN: dict[str, Known] = {
    "CIFAR10": Known(OBJECTS, {"train": 50_000, "test": 10_000}, ADDRESS, {CIFAR10.archive: CIFAR10.archive_bytes}),
    **{
        f"CIFAR100/{variant}": Known(n, {"train": 50_000, "test": 10_000}, ADDRESS, {CIFAR100.archive: CIFAR100.archive_bytes})
        for variant, n in (("fine", 100), ("coarse", 20))
    },
    "Caltech101": Known(101, {"": 8_677}, "https://data.caltech.edu/records/mzrjq-6wc02/files/", {"caltech-101.zip": None}, "caltech101"),
    "Caltech256": Known(
        257, {"": 30_607}, "https://data.caltech.edu/records/nyy15-4j048/files/", {"256_ObjectCategories.tar": None}, "caltech256"
    ),
    "Country211": Known(211, {"train": 31_650, "val": 10_550, "test": 21_100}, _CLIP, {"country211.tgz": None}),
    "DTD": Known(47, {"train": 1_880, "val": 1_880, "test": 1_880}, _OXFORD + "dtd/download/", {"dtd-r1.0.1.tar.gz": 625_239_812}, "dtd"),
    **{
        f"EMNIST/{variant}": Known(
            EMNIST_CLASSES[variant],
            {"train": train, "test": test},
            "https://biometrics.nist.gov/cs_links/EMNIST/",
            {"gzip.zip": 561_753_746},
            "EMNIST/raw",
        )
        for variant, (train, test) in _EMNIST.items()
    },
    "EuroSAT": Known(
        10,
        {"": 27_000},
        "https://huggingface.co/datasets/torchgeo/eurosat/resolve/c877bcd43f099cd0196738f714544e355477f3fd/",
        {"EuroSAT.zip": None},
        "eurosat",
    ),
    **{
        f"FGVCAircraft/{variant}": Known(
            n,
            {"train": 3_334, "val": 3_333, "test": 3_333},
            _OXFORD + "fgvc-aircraft/archives/",
            {"fgvc-aircraft-2013b.tar.gz": 2_753_340_328},
        )
        for variant, n in (("variant", 100), ("family", 70), ("manufacturer", 41))
    },
    "FashionMNIST": Known(
        FASHION,
        _TEN_THOUSANDS,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        _idx(26_421_880, 29_515, 4_422_102, 5_148),
        "FashionMNIST/raw",
    ),
    "Flowers102": Known(
        102,
        {"train": 1_020, "val": 1_020, "test": 6_149},
        _OXFORD + "flowers/102/",
        {"102flowers.tgz": 344_862_509, "imagelabels.mat": None, "setid.mat": None},
        "flowers-102",
    ),
    "Food101": Known(101, {"train": 75_750, "test": 25_250}, "http://data.vision.ee.ethz.ch/cvl/", {"food-101.tar.gz": 4_996_278_331}),
    "GTSRB": Known(
        43,
        {"train": 26_640, "test": 12_630},
        "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/",
        {"GTSRB-Training_fixed.zip": 187_490_228, "GTSRB_Final_Test_Images.zip": None, "GTSRB_Final_Test_GT.zip": None},
        "gtsrb",
    ),
    **{
        f"Imagenette/{variant}": Known(10, {"train": 9_469, "val": 3_925}, "https://s3.amazonaws.com/fast-ai-imageclas/", {file: None})
        for variant, file in (("full", "imagenette2.tgz"), ("320px", "imagenette2-320.tgz"), ("160px", "imagenette2-160.tgz"))
    },
    "KMNIST": Known(KUZUSHIJI, _TEN_THOUSANDS, "http://codh.rois.ac.jp/kmnist/dataset/kmnist/", _idx(), "KMNIST/raw"),
    "MNIST": Known(
        DIGITS,
        MNIST_COUNTS,
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _idx(9_912_422, 28_881, 1_648_877, 4_542),
        "MNIST/raw",
    ),
    "OxfordIIITPet": Known(
        37,
        {"train": 3_680, "test": 3_669},
        _OXFORD + "pets/data/",
        {"images.tar.gz": 791_918_971, "annotations.tar.gz": 19_173_078},
        "oxford-iiit-pet",
    ),
    "RenderedSST2": Known(2, {"train": 6_920, "val": 872, "test": 1_821}, _CLIP, {"rendered-sst2.tgz": None}),
    "STL10": Known(10, {"train": 5_000, "test": 8_000}, "http://ai.stanford.edu/~acoates/stl10/", {"stl10_binary.tar.gz": 2_640_397_119}),
    "SUN397": Known(397, {"": 108_754}, "http://vision.princeton.edu/projects/2010/SUN/", {"SUN397.tar.gz": None}),
    "SVHN": Known(
        DIGITS,
        {"train": 73_257, "test": 26_032},
        "http://ufldl.stanford.edu/housenumbers/",
        {"train_32x32.mat": 182_040_794, "test_32x32.mat": 64_275_384},
    ),
    "USPS": Known(
        DIGITS,
        {"train": 7_291, "test": 2_007},
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",
        {"usps.bz2": None, "usps.t.bz2": None},
    ),
}


def known(name: str, variant: str) -> Known | None:
    """What is known of a data set; None where it can't be downloaded."""
    return KNOWN.get(f"{name}/{variant}") or KNOWN.get(name)
