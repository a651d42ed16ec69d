"""Which part of the whole tensor a rank's local tensor is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from rankslice.errors import PlanError

if TYPE_CHECKING:
    import torch
    from torch.distributed.tensor import DTensor

Range = tuple[int, int]
"""Half-open."""


class Piece(NamedTuple):
    """A box of the whole tensor that is a box of the local one.

    Attributes:
        offsets: where it begins in the whole tensor, per axis.
        shape: its size, per axis.
        local: where it begins in the local tensor, per axis.
    """

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    local: tuple[int, ...]

    def of(self, local_tensor: torch.Tensor) -> torch.Tensor:
        """Its part of the local tensor."""
        for axis, (begin, size) in enumerate(zip(self.local, self.shape)):
            local_tensor = local_tensor.narrow(axis, begin, size)
        return local_tensor

    def swapped(self) -> Piece:
        """The same of the tensor with axes 1 and 2 exchanged."""
        return Piece(*((axes[0], axes[2], axes[1], *axes[3:]) for axes in self))


def whole(shape: Sequence[int]) -> Piece:
    nowhere = (0,) * len(shape)
    return Piece(nowhere, tuple(shape), nowhere)


def pieces_of(name: str, tensor: DTensor) -> list[Piece]:
    """The boxes that make up this rank's part of a DTensor, in order: one, or several of a strided placement whose
    parts are not neighbours; none where the rank has nothing of it.

    Raises:
        PlanError: for partial sums, and where the local tensor is not what the placements say.
    """
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return []
    axes: list[list[Range]] = [[(0, size)] for size in tensor.shape]
    for mesh_dim in _in_order(tensor):
        placement, size, index = tensor.placements[mesh_dim], tensor.device_mesh.size(mesh_dim), coordinate[mesh_dim]
        if placement.is_partial():
            raise PlanError(f"{name}: has partial sums along a mesh dimension, {tensor.placements}", tensor=name)
        if placement.is_replicate():
            continue
        strides = 1 if divides_last(tensor, mesh_dim) else getattr(placement, "split_factor", 1)
        chunks = _chunks(axes[placement.dim], strides)
        axes[placement.dim] = [kept for chunk in chunks for kept in _chunks(chunk, size)[index]]
    held = tuple(sum(end - begin for begin, end in ranges) for ranges in axes)
    local_shape = tuple(tensor.to_local().shape)
    if held != local_shape:
        raise PlanError(
            f"{name}: {tensor.placements} give this rank {list(held)} of {list(tensor.shape)}, its local tensor is "
            f"{list(local_shape)}",
            tensor=name,
        )
    return [_piece(box) for box in product(*(_placed(ranges) for ranges in axes))]


def divides_last(tensor: DTensor, mesh_dim: int) -> bool:
    """Whether a mesh dimension has a strided placement that stands for the mesh dimensions behind it: those divide the
    axis first, as tensor parallelism does before FSDP."""
    placement = tensor.placements[mesh_dim]
    behind = range(mesh_dim + 1, len(tensor.placements))
    same_axis = [n for n in behind if getattr(tensor.placements[n], "dim", None) == getattr(placement, "dim", None)]
    return getattr(placement, "split_factor", 1) == math.prod(tensor.device_mesh.size(n) for n in same_axis) > 1


def _in_order(tensor: DTensor) -> list[int]:
    """Mesh dimensions as they divide, one after the other."""
    order: list[int] = []
    for mesh_dim in reversed(range(len(tensor.placements))):
        order.insert(len(order) if divides_last(tensor, mesh_dim) else 0, mesh_dim)
    return order


def _chunks(ranges: list[Range], count: int) -> list[list[Range]]:
    """As torch.chunk divides: equal parts, rounded up, the last ones shorter or empty."""
    size = -(-sum(end - begin for begin, end in ranges) // count)
    chunks = []
    for n in range(count):
        chunk, at = [], 0
        for begin, end in ranges:
            first, last = max(begin, begin + n * size - at), min(end, begin + (n + 1) * size - at)
            if first < last:
                chunk.append((first, last))
            at += end - begin
        chunks.append(chunk)
    return chunks


def _placed(ranges: list[Range]) -> list[tuple[Range, int]]:
    """Neighbours joined, each with its place among them."""
    joined: list[Range] = []
    for begin, end in ranges:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    placed, at = [], 0
    for begin, end in joined:
        placed.append(((begin, end), at))
        at += end - begin
    return placed


def _piece(box: Sequence[tuple[Range, int]]) -> Piece:
    return Piece(
        tuple(begin for (begin, _), _ in box),
        tuple(end - begin for (begin, end), _ in box),
        tuple(at for _, at in box),
    )
