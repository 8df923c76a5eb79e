"""Who may work together in a pool, and what is said of those who fail. What needs a Ray is tested with the pool."""

from __future__ import annotations

import pytest

from xfer.cluster.crew import check_alike, failure, loss, one_kind
from xfer.cluster.extractor import About
from xfer.errors import DataError, StoreError, UsageError, XferError

OLD, NEW = "cpu x86_64 AVX2", "cpu x86_64 AVX512 avx512_bf16"


def test_one_class_of_device():
    assert one_kind({"n1": NEW, "n2": NEW}) == NEW
    assert one_kind({"n1": NEW, "n2": OLD}, only=OLD) == OLD


def test_several_classes_are_refused():
    """A store's rows are of one class: those of another differ in their last bits."""
    with pytest.raises(UsageError) as caught:
        one_kind({"n3": NEW, "n1": NEW, "n2": OLD, "n4": "cuda sm90"})
    assert caught.value.message == (
        "cluster: features are computed by one class of device, and there are 3:\n"
        "  cpu x86_64 AVX2: node n2\n"
        "  cpu x86_64 AVX512 avx512_bf16: node n1, n3\n"
        "  cuda sm90: node n4"
    )
    assert caught.value.hint == (
        "let the cluster have nodes of one class; with cluster.gpus_per_worker: 1, nodes without a GPU are left out"
    )


def test_a_class_that_is_not_there():
    with pytest.raises(UsageError) as caught:
        one_kind({"n1": NEW}, only="cuda sm90")
    assert caught.value.message == f"cluster: no node computes on cuda sm90; there are\n  {NEW}: node n1"
    assert caught.value.hint == "choose one of these, or give the cluster such a node"


def test_other_versions():
    with pytest.raises(UsageError) as caught:
        check_alike(
            "n2", About(NEW, {"torch": "2.9", "pillow": "12"}, "s"), About(NEW, {"torch": "2.14", "pillow": "12", "timm": "1"}, "s")
        )
    assert caught.value.message == "cluster: node n2 has timm absent instead of 1, torch 2.9 instead of 2.14"
    assert caught.value.hint == "install the same versions on all nodes"


def test_other_images():
    with pytest.raises(DataError) as caught:
        check_alike("n2", About(NEW, {"torch": "2.14"}, "s"), About(NEW, {"torch": "2.14"}, "t"))
    assert caught.value.message == "the images on node n2 are not those on the other nodes"
    assert caught.value.hint == "keep them in one place that every node sees"
    check_alike("n2", About(NEW, {"torch": "2.14"}, "s"), About(NEW, {"torch": "2.14"}, "s"))


def test_errors_say_where():
    ours = failure("n2", StoreError("no room", hint="make some"))
    assert (type(ours), ours.message, ours.hint) == (StoreError, "node n2: no room", "make some")
    other = failure("n2", RuntimeError("CUDA out of memory.\nTried to allocate"))
    assert (type(other), other.message) == (XferError, "node n2: extraction failed: RuntimeError: CUDA out of memory")
    assert other.hint == "the worker's log in Ray's session folder has the whole traceback; what is in the store is kept"


def test_why_an_actor_is_gone():
    assert loss("The actor died unexpectedly before finishing this task.\n\tclass_name: Extractor\n") == (
        "The actor died unexpectedly before finishing this task"
    )
    creation = (
        "The actor died because of an error raised in its creation task, ray::X()\n  File …\nModuleNotFoundError: No module named 'xfer'"
    )
    assert loss(creation) == "ModuleNotFoundError: No module named 'xfer'"
