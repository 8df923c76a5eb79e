"""Weight files as tensors, and the files that are none."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from xfer.data.locations import local_path
from xfer.errors import WeightsError
from xfer.sources.weights import read_tensors

REFUSED = "is refused: it asks for {}, and only tensors are read from a weight file; nothing of it was run"
READABLE = "xfer reads .safetensors, .pth, .pt, .bin, .npz, and .pkl files of numpy arrays"


def message(file: Path) -> str:
    with pytest.raises(WeightsError) as error:
        read_tensors(file)
    assert error.value.message.startswith(f"{file}")
    return error.value.message.removeprefix(str(file)).lstrip()


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"conv.weight": torch.randn(4, 3, 2, 2), "conv.bias": torch.randn(4).half(), "n": torch.tensor(7)}


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.bin", "a.ckpt", "no_ending"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_files_new_and_old(tmp_path: Path, tensors: dict[str, torch.Tensor], name: str, is_zip: bool) -> None:
    torch.save(tensors, tmp_path / name, _use_new_zipfile_serialization=is_zip)
    assert same(read_tensors(tmp_path / name), tensors)


def test_safetensors_whatever_the_file_is_called(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name in ("a.safetensors", "a.bin"):
        save_file(tensors, tmp_path / name)
        found = read_tensors(tmp_path / name)
        assert {name: found[name].tolist() for name in found} == {name: tensor.tolist() for name, tensor in tensors.items()}
        assert found["conv.bias"].dtype == torch.float16


def test_checkpoints_hold_more_than_a_state_dict(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    checkpoint = {
        "epoch": 3,
        "arch": "resnet",
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999)),
        "state_dict": OrderedDict((f"module.{name}", tensor) for name, tensor in tensors.items()),
        "optimizer": {"state": {0: {"step": 1, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "history": np.arange(3),
    }
    for is_zip in (True, False):
        torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=is_zip)
        names = [f"state_dict/module.{name}" for name in tensors]
        assert list(read_tensors(tmp_path / "a.pth")) == [*names, "optimizer/state/0/exp_avg", "history"]


def test_parameters_come_without_gradients(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "a.pth")
    assert not read_tensors(tmp_path / "a.pth")["w"].requires_grad


def test_numpy_archives(tmp_path: Path) -> None:
    arrays = {"b/kernel": np.arange(6, dtype=np.float64).reshape(2, 3), "a": np.float16([1.5]), "big": np.array([1, 2], ">i4"), "f": np.asfortranarray(np.arange(6).reshape(2, 3))}  # fmt: skip # noqa: E501
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = read_tensors(tmp_path / "a.npz")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {name: array.tolist() for name, array in arrays.items()}
    assert found["b/kernel"].dtype == torch.float64


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_arrays_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    content = {
        "conv": [np.random.default_rng(0).random((3, 3, 2, 4)).astype(np.float32), np.zeros(4, np.float32)],
        "nested": OrderedDict(deep=(np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.array([[1, 2]], ">f4"))),
        "learning_rate": np.float32(2.5),
        "note": "text",
        "strided": np.arange(10)[::3],
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3)),
    }
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_tensors(tmp_path / "a.pkl")
    assert list(found) == ["conv/0", "conv/1", "nested/deep/0", "nested/deep/1", "strided", "flags", "empty"]
    assert np.array_equal(found["conv/0"].numpy(), content["conv"][0])
    assert found["nested/deep/0"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert found["nested/deep/1"].tolist() == [[1.0, 2.0]]
    assert found["strided"].tolist() == [0, 3, 6, 9]
    assert found["flags"].dtype == torch.bool
    assert found["empty"].shape == (0, 3)


def test_a_real_pickle_of_another_library() -> None:
    found = read_tensors(local_path("pkg://ndf/example_models/weights/squeezenet_weights.pkl"))
    assert len(found) == 52
    assert found["conv1/0"].shape == (3, 3, 3, 64)
    assert found["conv1/0"].dtype == torch.float32
    assert list(found)[:4] == ["conv1/0", "conv1/1", "conv10/0", "conv10/1"]


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def save_archive(content: Any, file: Path) -> None:
    np.savez(file, a=np.array(content, dtype=object))


HOSTILE: dict[str, tuple[Callable[[Any, Path], Any], str]] = {
    "zip.pth": (lambda content, file: torch.save({"a": content}, file), "posix.system"),
    "zip.pt": (lambda content, file: torch.save([content], file), "posix.system"),
    "legacy.bin": (lambda content, file: torch.save({"a": content}, file, _use_new_zipfile_serialization=False), "posix.system"),
    "plain0.pth": (lambda content, file: file.write_bytes(pickle.dumps({"a": content}, 0)), "posix.system"),
    "plain5.pth": (lambda content, file: file.write_bytes(pickle.dumps({"a": content}, 5)), "posix.system"),
    "a.pkl": (lambda content, file: file.write_bytes(pickle.dumps({"a": content})), "posix.system"),
    "no_ending": (lambda content, file: file.write_bytes(pickle.dumps({"a": content})), "posix.system"),
    "named.safetensors.pkl": (lambda content, file: file.write_bytes(pickle.dumps({"a": content}, 0)), "posix.system"),
    "objects.pkl": (lambda content, file: file.write_bytes(pickle.dumps(np.array([content], object), 2)), "posix.system"),
    "a.npz": (save_archive, "'a' as an array of Python objects"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_run_code_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    write, asked = HOSTILE[name]
    trace = tmp_path / "ran"
    write(Hostile(trace), tmp_path / name)
    assert message(tmp_path / name) == REFUSED.format(asked)
    assert not trace.exists()


def test_a_safetensors_name_hides_no_pickle(tmp_path: Path) -> None:
    torch.save({"a": Hostile(tmp_path / "ran")}, tmp_path / "a.safetensors")
    assert message(tmp_path / "a.safetensors") == REFUSED.format("posix.system")
    (tmp_path / "b.safetensors").write_bytes(pickle.dumps(Hostile(tmp_path / "ran"), 0))
    assert message(tmp_path / "b.safetensors").startswith("is truncated or damaged: it can't be read as safetensors")
    assert not (tmp_path / "ran").exists()


# An array of one Python object.
OBJECTS = (
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntRI00\nS'x'\ntb."
)


@pytest.mark.parametrize(
    ("program", "asked"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"cnumpy\nload\n(S'x'\ntR.", "numpy.load"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "numpy.core.multiarray.fromfile"),
        (b"cxfer.sources.arrays\npickle\n.", "xfer.sources.arrays.pickle"),
        (b"c_codecs\nencode\n(S'x'\nS'zlib_codec'\ntR.", "text in 'zlib_codec'"),
        (OBJECTS, "an array of object"),
        (b"c__builtin__\ngetattr\n.", "__builtin__.getattr"),
        (b"P1\n.", "something outside the file"),
        (b"cnumpy\ndtype\n(S'V8,O8,f4,f4'\nI0\nI1\ntR.", "an array of structures"),
    ],
)
def test_names_that_no_array_needs_are_refused(tmp_path: Path, program: bytes, asked: str) -> None:
    (tmp_path / "a.pkl").write_bytes(program)
    assert message(tmp_path / "a.pkl") == REFUSED.format(asked)


def test_attributes_set_by_a_pickle_change_nothing(tmp_path: Path) -> None:
    # BUILD with a pair sets attributes of whatever stands on the stack: here of the answers themselves.
    for target in (b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"ccollections\nOrderedDict\n", b"cnumpy._core.multiarray\nscalar\n"):
        (tmp_path / "a.pkl").write_bytes(target + b"(N(S'__defaults__'\nNS'__setstate__'\nNS'x'\nNdtb.")
        with pytest.raises(WeightsError):
            read_tensors(tmp_path / "a.pkl")
        (tmp_path / "b.pkl").write_bytes(pickle.dumps({"a": np.arange(3.0), "b": OrderedDict(c=np.ones(1))}))
        assert {name: tensor.tolist() for name, tensor in read_tensors(tmp_path / "b.pkl").items()} == {"a": [0, 1, 2], "b/c": [1]}


def test_a_pickled_model_is_code_too(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(WeightsError) as error:
        read_tensors(tmp_path / "a.pth")
    assert error.value.message == f"{tmp_path}/a.pth " + REFUSED.format("torch.nn.modules.linear.Linear")
    assert error.value.hint == (
        "a whole pickled model is code too: where it was made, save its tensors alone, torch.save(model.state_dict(), 'weights.pth')"
    )


def archive(file: Path, **entries: bytes) -> None:
    with zipfile.ZipFile(file, "w") as zipped:
        for name, content in entries.items():
            zipped.writestr(name.replace("__", "/").replace("_dot_", "."), content)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    def written(name: str, content: bytes) -> str:
        (tmp_path / name).write_bytes(content)
        return message(tmp_path / name)

    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 46830571\n"
    page = "is a web page, not weights: the address it was saved from wants a login, or is not that of the file itself"
    assert written("empty.pth", b"") == "is empty (0 bytes): a download or copy of it failed"
    assert written("a.pth", lfs) == "is a git-LFS pointer, not the weights themselves: run 'git lfs pull' where it comes from"
    assert written("a.safetensors", b"\n <!DOCTYPE html><html>") == page
    assert written("a.npz", b"\xef\xbb\xbf<html><body>404") == page
    assert written("a.xml.bin", b'<?xml version="1.0"?><Error><Code>AccessDenied') == page
    assert written("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(64)) == f"is an HDF5 file, as Keras writes them; this model is torch's. {READABLE}"
    assert written("a.gz", b"\x1f\x8b" + bytes(64)) == "is packed with gzip: unpack it first"
    assert written("x.bin", bytes(range(100, 164))) == f"is no weight file that xfer knows (it opens with b'defghijk'). {READABLE}"
    assert written("x.npz", b"abcdefghijk") == f"is no weight file that xfer knows (it opens with b'abcdefgh'). {READABLE}"
    one = io.BytesIO()
    np.save(one, np.ones(3))
    assert written("a.npy", one.getvalue()) == "is one numpy array without a name; save the arrays by name: numpy.savez(file, **tensors)"
    assert message(tmp_path) == "is a folder; name the weight file in it"
    with pytest.raises(WeightsError, match=f"^there is no file {tmp_path}/absent.pth$"):
        read_tensors(tmp_path / "absent.pth")


def test_archives_that_are_something_else(tmp_path: Path) -> None:
    archive(tmp_path / "a.keras", metadata_dot_json=b"{}", config_dot_json=b"{}", model_dot_weights_dot_h5=b"")
    assert message(tmp_path / "a.keras") == f"is a Keras model; this model is torch's. {READABLE}"
    archive(tmp_path / "a.zip", readme_dot_txt=b"x", net_dot_pth=b"")
    assert message(tmp_path / "a.zip") == (
        "is a zip archive without tensors in it (it holds readme.txt, net.pth); unpack it and name the weight file in it"
    )
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(tmp_path / "a.pt"))
    assert message(tmp_path / "a.pt") == (
        "is a TorchScript program, which is code; save its tensors alone: torch.save(torch.jit.load(file).state_dict(), 'weights.pth')"
    )
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        packed.addfile(tarfile.TarInfo("net.pth"))
    assert message(tmp_path / "a.tar") == "is a tar archive: unpack it and name the weight file in it"


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "a.safetensors", "a.npz", "a.pkl"])
def test_truncated_at_any_place(tmp_path: Path, tensors: dict[str, torch.Tensor], name: str) -> None:
    file = tmp_path / name
    if name.endswith(".npz"):
        np.savez(file, **{key: tensor.numpy() for key, tensor in tensors.items()})
    elif name.endswith(".pkl"):
        file.write_bytes(pickle.dumps({key: tensor.numpy() for key, tensor in tensors.items()}))
    elif name.endswith(".safetensors"):
        save_file(tensors, file)
    else:
        torch.save(tensors, file, _use_new_zipfile_serialization=name.startswith("zip"))
    whole = file.read_bytes()
    for length in (3, 9, 40, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1):
        file.write_bytes(whole[:length])
        said = message(file)
        assert said.startswith(("is truncated or damaged", "is damaged", "is no weight file")), said
        assert "\n" not in said


def test_flipped_bytes_never_escape_as_another_error(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    random = np.random.default_rng(0)
    for kind in ("zip", "legacy", "safetensors"):
        file = tmp_path / f"{kind}.pth"
        if kind == "safetensors":
            save_file(tensors, file)
        else:
            torch.save(tensors, file, _use_new_zipfile_serialization=kind == "zip")
        whole = file.read_bytes()
        for _ in range(60):
            spoilt = bytearray(whole)
            for place in random.integers(0, len(whole), 4):
                spoilt[place] = int(random.integers(0, 256))
            file.write_bytes(spoilt)
            with contextlib.suppress(WeightsError):  # some spoil only values, and those can't be told
                read_tensors(file)


def test_odd_contents(tmp_path: Path) -> None:
    file = tmp_path / "a.pth"
    torch.save({"epoch": 3}, file)
    assert message(file) == "holds no tensors"
    torch.save(torch.ones(3), file)
    assert message(file) == "holds one tensor without a name, not the tensors of a network"
    torch.save({"a": torch.ones(2, 2).to_sparse()}, file)
    assert message(file) == ": 'a' is not a plain tensor of real numbers (it is torch.float32, torch.sparse_coo)"
    torch.save({"a": torch.ones(2, dtype=torch.complex64)}, file)
    assert message(file) == ": 'a' is not a plain tensor of real numbers (it is torch.complex64, torch.strided)"
    np.savez(tmp_path / "a.npz", a=np.array(["text"]))
    assert message(tmp_path / "a.npz") == ": 'a' is an array of <U4, not of numbers"


def test_containers_without_end(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    wide: list[Any] = [np.ones(1)]
    for _ in range(20):
        wide = [wide] * 20
    for content in (endless, wide):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        assert message(tmp_path / "a.pkl") == "is refused: its containers are nested in each other without end"


def test_a_huge_promised_shape_costs_nothing(tmp_path: Path) -> None:
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    entry = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    archive(tmp_path / "a.npz", a_dot_npy=entry)
    assert message(tmp_path / "a.npz").startswith("is truncated or damaged: it can't be read as an .npz archive (")


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pth").write_bytes(b"x")

    def denied(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert message(tmp_path / "a.pth") == "can't be read: Permission denied"
