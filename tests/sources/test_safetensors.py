"""safetensors without a framework."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from xfer.errors import WeightsError
from xfer.sources.safetensors import read_safetensors


def test_every_type_of_number(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    tensors = {str(kind): (torch.arange(6).reshape(2, 3) * 0.5).to(kind) for kind in kinds}
    tensors |= {"none": torch.ones(0, 3), "one": torch.tensor(2.0), "flags": torch.tensor([True, False])}
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_safetensors(tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        assert found[name].shape == tuple(tensor.shape)
        assert np.array_equal(found[name], tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()), name
    assert found["torch.bfloat16"].dtype == np.float32


def test_the_order_is_that_of_the_file(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(40)]
    save_file({name: torch.ones(1) for name in names}, tmp_path / "a.safetensors")
    assert list(read_safetensors(tmp_path / "a.safetensors")) == names


def test_what_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(4, dtype=torch.float8_e4m3fn)}, file)
    with pytest.raises(WeightsError) as error:
        read_safetensors(file)
    assert error.value.message == f"{file}: 'a' is of the type F8_E4M3, which can't be used"
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(WeightsError) as error:
        read_safetensors(file)
    assert error.value.message.startswith(f"{file} is truncated or damaged: it can't be read as safetensors (")
    with pytest.raises(WeightsError) as error:
        read_safetensors(tmp_path / "b.safetensors")
    assert error.value.message == f"{tmp_path}/b.safetensors can't be read: No such file or directory"
