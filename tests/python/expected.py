"""What the package must give, from a second implementation of the rules (tests/system/reference.py)."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1] / "system"))

import reference  # noqa: E402

BITS = {1: torch.uint8, 2: torch.uint16, 4: torch.uint32, 8: torch.uint64}


def whole_state(folder):
    """Native name -> bits of the whole tensor."""
    model = reference.Model.of(folder)
    return {fqn: bits(tensor) for fqn, tensor in reference.global_state(reference.read_folder(folder), model).items()}


def stored(folder):
    """Name in the files -> bits."""
    return {key: bits(tensor) for key, tensor in reference.read_folder(folder).items()}


def bits(tensor):
    """The bits of a tensor of torch, or of the second implementation, as unsigned integers of torch."""
    if isinstance(tensor, reference.Tensor):
        return torch.from_numpy(tensor.bits.copy())
    tensor = tensor.detach().contiguous()
    return tensor.view(BITS[tensor.dtype.itemsize])


def part(mesh, rank, whole):
    """What a rank of a mesh (`reference.Mesh`) holds of a whole state."""
    return {fqn: value[reference.local_box(fqn, value.shape, mesh, rank)] for fqn, value in whole.items()}


def assert_same(found, expected):
    """Two state dicts of bits have the same names, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert found[name].numpy().tobytes() == value.contiguous().numpy().tobytes(), name
