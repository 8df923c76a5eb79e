"""A TensorFlow SavedModel as a network: TF Hub's reusable ones, what Keras exports, and any other with one signature.

A SavedModel is a program: TensorFlow runs its graph, which may read and write files. So it is loaded only where the recipe trusts it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from xfer.errors import WeightsError
from xfer.plan.preprocess import Preprocess
from xfer.sources import arrays, keras_library
from xfer.sources.model_paths import ANY_SIZE, BLOCK_BYTES, OWN, PLACE, PathSource, content
from xfer.sources.source import Tag

GRAPH = "saved_model.pb"
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")
DEFAULT = "serving_default"  # the signature that is meant, of several
FEATURES = ("default", "features")  # what publishers call the output that is meant, of several
MOST_EXPANSION, ROOM_BYTES = 100, 1 << 28


class SavedModelSource(PathSource):
    """`savedmodel:PATH`: a folder with a SavedModel, or an archive of one (.zip, .tar.gz). Its features can always be used; it can be
    trained where it exposes trainable variables."""

    provider = "savedmodel"
    needs_trust = (
        "a SavedModel is a program, which may read and write files when it is loaded; where you know who made it, "
        "set 'trust: true' beside source.model"
    )

    def build(self, name: str, *, pretrained: bool, image_size: int | None = None) -> Any:
        """A model that calls the SavedModel; raises WeightsError where it was to have other weights than its own."""
        if not pretrained:
            raise WeightsError(f"{self.provider}:{name} can't be had without its own weights, or with others; leave source.weights out")
        folder = _folder(Path(self.located(name)), self.stamp(name))
        return _model_class()(_loaded(folder), content(folder))

    def input_size(self, name: str) -> int:
        """The side in pixels that its input has; 224 where it takes any."""
        return _told(self.located(name), self.stamp(name))[0]

    def tag(self, name: str, tag: str, *, image_size: int | None = None) -> Tag:
        """The weights in it; raises WeightsError for any other tag."""
        if tag not in ("DEFAULT", OWN):
            raise WeightsError(f"{self.provider}:{name} brings its own weights, so there is no tag '{tag}'; leave source.weights out")
        return Tag(OWN, None, None)

    def preprocess(self, name: str, tag: str | None) -> Preprocess:
        """0..1, as TF Hub's image models agree to; nothing in a SavedModel says it. One that reads whole numbers reads 0..255."""
        size, whole = _told(self.located(name), self.stamp(name))
        return Preprocess(resize=size, crop=size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0 if whole else 255.0)


@dataclass(frozen=True)
class _Loaded:
    """A SavedModel: what is called, how its input is specified, and its variables, the trainable ones first."""

    function: Any
    spec: Any
    argument: str | None  # the input's name, where it has to be given by name
    takes_training: bool
    eval_only: str | None  # why it is called as in eval mode when it is trained
    trainable: tuple[Any, ...]
    others: tuple[Any, ...]
    held: Any  # the object itself, whose variables live as long as it does


@cache
def _model_class() -> type:
    keras = keras_library.keras()
    import tensorflow as tf

    base: Any = keras.Model

    class SavedModel(base):
        """Calls a SavedModel on float32 [B, S, S, 3]. Its variables are the SavedModel's own."""

        def __init__(self, loaded: _Loaded, content: str) -> None:
            super().__init__(name="saved_model", dtype="float32", autocast=False)
            self._loaded, self._content = loaded, content
            self.note = "a SavedModel"
            for variable in loaded.trainable:
                self._adopt(variable, trainable=True)
            for variable in loaded.others:
                self._adopt(variable, trainable=False)
            if not loaded.trainable:
                self.note += " without trainable variables: its features can be used, but nothing of it can be trained"
            elif loaded.eval_only is not None:
                self.note += f" {loaded.eval_only}: what of it is trained computes as in eval mode"
            self.built = True

        def _adopt(self, variable: Any, *, trainable: bool) -> None:
            name = variable.name.partition(":")[0].replace("/", "_")
            own = keras.Variable(variable, trainable=trainable, dtype=variable.dtype, name=name)
            own._value = variable  # not a copy of it: what is trained is what the graph reads
            self._track_variable(own)

        def call(self, inputs: Any, training: bool = False) -> Any:
            loaded = self._loaded
            pixels = tf.cast(inputs, loaded.spec.dtype)
            given: dict[str, Any] = {"training": bool(training) and loaded.eval_only is None} if loaded.takes_training else {}
            found = loaded.function(pixels, **given) if loaded.argument is None else loaded.function(**{loaded.argument: pixels})
            return _chosen(found)

        def get_config(self) -> dict[str, Any]:
            return {"content": self._content}

    return SavedModel


def _chosen(found: Any) -> Any:
    """The output that is meant, of one or several."""
    if isinstance(found, Mapping):
        return next((found[name] for name in FEATURES if name in found), found[min(found)])
    return found[0] if isinstance(found, (list, tuple)) else found


def _loaded(folder: Path) -> _Loaded:
    """Load what lies in a folder; raises WeightsError for what can't be loaded, and for what does not read one image."""
    keras_library.keras()
    import tensorflow as tf

    try:
        held = tf.saved_model.load(str(folder))
    except (*arrays.DAMAGE, tf.errors.OpError) as error:
        raise WeightsError(f"{folder} can't be loaded as a SavedModel: {arrays.reason(error)}", path=PLACE) from None
    function, concrete, argument, takes_training = _called(held, folder)
    eval_only = _eval_only(function) if takes_training else None
    listed = held if hasattr(held, "variables") else concrete  # what nobody lists is at least what the function reads
    trainable = list(getattr(listed, "trainable_variables", ()))
    known = {id(variable) for variable in trainable}
    others = [variable for variable in getattr(listed, "variables", ()) if id(variable) not in known]
    return _Loaded(function, _image_specs(concrete)[0], argument, takes_training, eval_only, tuple(trainable), tuple(others), held)


def _called(held: Any, folder: Path) -> tuple[Any, Any, str | None, bool]:
    """(function, one concrete form of it, name of its input or None, whether it takes `training`): the object itself where it can be
    called, as TF Hub's can, what Keras exports as `serve`, else its one signature."""
    for name in ("__call__", "serve"):
        function: Any = getattr(held, name, None)
        usable = [concrete for concrete in getattr(function, "concrete_functions", ()) if _image_specs(concrete)]
        if usable:
            return function, usable[0], None, "training" in function.function_spec.arg_names
    signatures = dict(getattr(held, "signatures", {}))
    usable = [signatures[name] for name in sorted(signatures, key=lambda name: name != DEFAULT) if _image_specs(signatures[name])]
    if not usable:
        there = f"its signatures are {', '.join(sorted(signatures))}" if signatures else "it has no signature"
        raise WeightsError(f"{folder} has nothing that reads one batch of RGB images (images x side x side x 3): {there}", path=PLACE)
    return usable[0], usable[0], next(iter(usable[0].structured_input_signature[1])), False


def _eval_only(function: Any) -> str | None:
    """Why a function that takes `training` can't be called in train mode: it was saved without, or it draws random numbers by no seed,
    which no run could draw again."""
    modes = [concrete for concrete in function.concrete_functions if _trains(concrete)]
    if not modes:
        return "without a train mode"
    graphs = [concrete.graph.as_graph_def() for concrete in modes]
    nodes = [node for graph in graphs for body in (graph.node, *(inner.node_def for inner in graph.library.function)) for node in body]
    seeds = [(node.attr["seed"].i, node.attr["seed2"].i) for node in nodes if {"seed", "seed2"} <= set(node.attr)]
    return "whose train mode draws random numbers that can't be drawn again" if (0, 0) in seeds else None


def _trains(concrete: Any) -> bool:
    import tensorflow as tf

    return any(value is True for value in tf.nest.flatten(concrete.structured_input_signature))


def _image_specs(concrete: Any) -> list[Any]:
    """The specification of the input, where it is a single batch of square RGB images; else none."""
    import tensorflow as tf

    positional, named = concrete.structured_input_signature
    specs = [spec for spec in tf.nest.flatten([positional, named]) if isinstance(spec, tf.TensorSpec)]
    if len(specs) != 1 or specs[0].shape.rank != 4:
        return []
    _, height, width, channels = specs[0].shape.as_list()
    return specs if channels in (None, 3) and height == width else []


@cache
def _told(path: str, stamp: str) -> tuple[int, bool]:
    """The side in pixels, and whether the input is of whole numbers, of one state of what lies there."""
    spec = _loaded(_folder(Path(path), stamp)).spec
    side = spec.shape[1]
    return int(side) if side is not None else ANY_SIZE, bool(spec.dtype.is_integer)


# Folders and archives


def _folder(path: Path, stamp: str) -> Path:
    """The folder with the SavedModel: `path`, or what an archive holds, unpacked once into the cache; raises WeightsError."""
    if path.is_file():
        if not path.name.lower().endswith(ARCHIVES):
            raise WeightsError(f"{path} is no SavedModel: it must be a folder, or an archive of one ({', '.join(ARCHIVES)})", path=PLACE)
        cache_folder = Path(os.environ.get("XFER_CACHE", "~/.cache/xfer")).expanduser().absolute() / "savedmodels"
        root = cache_folder / hashlib.blake2b(f"{path}\0{stamp}".encode(), digest_size=12).hexdigest()
        if not root.is_dir():
            _unpack(path, root)
    else:
        root = path
    found = next((folder for folder in (root, *sorted(root.glob("*"))) if (folder / GRAPH).is_file()), None)
    if found is None:
        raise WeightsError(f"{path} is no SavedModel: there is no {GRAPH} in it", path=PLACE)
    return found


def _unpack(archive: Path, root: Path) -> None:
    """Write an archive's files below `root`: to a temporary folder first, and nothing of what would lie elsewhere."""
    root.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=root.parent))
    room = MOST_EXPANSION * archive.stat().st_size + ROOM_BYTES
    try:
        for name, stream in _members(archive):
            parts = PurePosixPath(name).parts
            if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or ":" in name:
                raise WeightsError(f"{archive} is refused: its '{name}' would lie outside the folder that it is unpacked to", path=PLACE)
            file = folder.joinpath(*parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as out:
                while block := stream.read(BLOCK_BYTES):
                    room -= len(block)
                    if room < 0:
                        raise WeightsError(f"{archive} is refused: it unpacks to far more than it holds", path=PLACE)
                    out.write(block)
        if not root.is_dir():
            os.replace(folder, root)
    except (*arrays.DAMAGE, tarfile.TarError, EOFError) as error:
        raise WeightsError(f"{archive} is damaged: it can't be unpacked ({arrays.reason(error)})", path=PLACE) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The files of an archive; links and devices are left out, and folders made as files need them."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as packed:
            for entry in packed.infolist():
                if not entry.is_dir():
                    with packed.open(entry) as stream:
                        yield entry.filename, stream
        return
    with tarfile.open(archive) as packed_tar:
        for member in packed_tar:
            content = packed_tar.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content
