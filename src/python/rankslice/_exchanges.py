"""DTensors that are divided in a way that C++ does not know: the ranks exchange what they have of them."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

import torch

from rankslice import _native, _steps
from rankslice._pieces import divides_last
from rankslice.errors import CommError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def needs_exchange(tensor: DTensor, axes: Set[int]) -> bool:
    """Whether a DTensor is divided otherwise than along `axes` into neighbours. The same on every rank."""
    return not all(_is_divided_by(tensor, n, axes) for n in range(len(tensor.placements)))


def exchanged(tensors: Mapping[str, DTensor], world: _native.Communicator | None) -> dict[str, DTensor]:
    """Copies that are divided along their first axis, all held at once. Collective, and over the mesh of each.

    Raises:
        UsageError: not the tensors of the first rank, in its order: some would wait for one that another lacks, or take
            the next one for it.
        CommError: torch cannot exchange them, for the exception that is the cause.
    """
    if world is not None:
        listed = [f"{name} {tuple(t.shape)} {t.dtype} {t.placements}" for name, t in tensors.items()]
        problem = "the DTensors that ranks must exchange are not those of rank 0, or in another order"
        _native.require_same(world, "\n".join(listed), f"{problem}: {len(listed)}, from {listed[:1]} on")
    if not tensors:
        return {}
    return _steps.agreed(world, lambda: {name: _exchanged(name, t, world) for name, t in tensors.items()})


def _exchanged(name: str, tensor: DTensor, world: _native.Communicator | None) -> DTensor:
    from torch.distributed.tensor import Shard

    placements = [Shard(0) if hasattr(placement, "dim") else placement for placement in tensor.placements]
    try:
        found = tensor.detach().redistribute(placements=placements)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CommError(f"{name}: the ranks cannot exchange it: {error}", tensor=name) from error
    if world is not None:
        _native.still_alive(world)
    return found


def _is_divided_by(tensor: DTensor, mesh_dim: int, axes: Set[int]) -> bool:
    """Whether a mesh dimension divides one of these axes into neighbours, or nothing."""
    placement = tensor.placements[mesh_dim]
    axis = getattr(placement, "dim", None)
    if axis is None:
        return True
    return axis in axes and (getattr(placement, "split_factor", 1) == 1 or divides_last(tensor, mesh_dim))
