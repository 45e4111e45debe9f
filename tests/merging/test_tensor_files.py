"""Our safetensors reader and writer against the library's."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusemble.merging.tensor_files import DTYPES, Form, TensorFile, write_tensors

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "flag": torch.tensor([True, False, True]),
    **{name: (10 * torch.randn(3, 5, generator=GENERATOR)).to(dtype) for name, dtype in DTYPES.items()},
    "empty": torch.zeros(0, 4),
    "number": torch.tensor(2.5, dtype=torch.float64),
    "naïve": torch.ones(1, dtype=torch.float16),
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return (one.dtype, one.shape, raw(one)) == (other.dtype, other.shape, raw(other))


def test_the_library_reads_what_we_write(tmp_path):
    forms = {key: Form(tensor.dtype, tuple(tensor.shape)) for key, tensor in TENSORS.items()}
    write_tensors(tmp_path / "ours.safetensors", forms, TENSORS.__getitem__, {"who": "wé"})
    read = load_file(tmp_path / "ours.safetensors")
    assert read.keys() == TENSORS.keys()
    assert all(same(read[key], tensor) for key, tensor in TENSORS.items())
    with safe_open(tmp_path / "ours.safetensors", "pt") as opened:
        assert opened.metadata() == {"who": "wé"}


def test_we_read_what_the_library_writes(tmp_path):
    save_file(TENSORS, tmp_path / "theirs.safetensors", {"who": "they"})
    file = TensorFile(tmp_path / "theirs.safetensors")
    assert file.metadata == {"who": "they"}
    assert file.forms.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert file.forms[key] == Form(tensor.dtype, tuple(tensor.shape))
        assert same(file.read(key), tensor)


def test_a_file_that_becomes_shorter_is_noticed(tmp_path):
    path = tmp_path / "short.safetensors"
    save_file({"w": torch.zeros(100)}, path)
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"short.safetensors ends within 'w': it changed while it was read"):
        file.read("w")


def test_what_was_not_announced_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'w' was announced as .*\(2,\).* but came as torch.float32 \(3,\)"):
        write_tensors(tmp_path / "x", {"w": Form(torch.float32, (2,))}, lambda key: torch.zeros(3), {})
