"""Where this rank stands: a DeviceMesh, or plain numbers, as a mesh in the canonical order of its ranks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankslice import _native
from rankslice.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

CANONICAL = ("ep_replicate", "ep_shard", "ep")
"""The dimensions of a mesh, the fastest one last."""


@dataclass(frozen=True)
class MeshPlace:
    """A mesh, and where this rank stands in it.

    Attributes:
        mesh: its sizes.
        rank: this rank's place in the canonical order, ``ep`` fastest.
        ranks: the mesh's ranks in the canonical order, numbered as torch.distributed does in the whole job;
            None where each rank works alone.
        device_mesh: where the ranks came from, or None.
    """

    mesh: _native.Mesh
    rank: int
    ranks: list[int] | None
    device_mesh: DeviceMesh | None


def place(
    mesh: DeviceMesh | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    ep: int | None = None,
    ep_shard: int | None = None,
    process_group: ProcessGroup | None = None,
) -> MeshPlace:
    """Where this rank stands. Local.

    Either ``mesh``; or ``rank`` of ``world_size``, which work alone; or neither: then the ranks are those of
    ``process_group``, else of torch.distributed where it is initialised, else this one alone.

    Args:
        mesh: with dimensions among ``ep``, ``ep_shard`` and ``ep_replicate``, in any order.
        ep: how many ranks share the experts; all of them where it is not given.
        ep_shard: how many ranks share each expert; 1 where it is not given.

    Raises:
        UsageError: the arguments make no sense together, or this rank is not in the mesh.
        PlanError: the ranks cannot be arranged so.
    """
    if mesh is not None:
        if (rank, world_size, ep, ep_shard) != (None, None, None, None):
            raise UsageError("a mesh says rank, world_size, ep and ep_shard itself: give one or the other")
        return _place_in(mesh)
    ranks = None
    if rank is not None or world_size is not None:
        if rank is None or world_size is None:
            raise UsageError("rank and world_size belong together: give both or neither")
        if process_group is not None:
            raise UsageError("rank and world_size are for ranks that work alone: a process group says them itself")
    else:
        rank, ranks = _ranks_of(process_group)
        world_size = 1 if ranks is None else len(ranks)
    native = _native.make_mesh(world_size, 0 if ep is None else ep, 1 if ep_shard is None else ep_shard)
    if not 0 <= rank < world_size:
        raise UsageError(f"rank {rank} is outside a mesh of {world_size} ranks")
    return MeshPlace(native, rank, ranks, None)


def _place_in(mesh: DeviceMesh) -> MeshPlace:
    import torch.distributed as dist

    names = mesh.mesh_dim_names or ()
    if not names or set(names) - set(CANONICAL):
        raise UsageError(
            f"Expected mesh dimension names to contain only 'ep', 'ep_shard', 'ep_replicate', got {mesh.mesh_dim_names}"
            f"{_advice(names)}"
        )
    order = [names.index(name) for name in CANONICAL if name in names]
    ranks = mesh.mesh.permute(order).flatten().tolist()
    sizes = dict(zip(names, mesh.mesh.shape, strict=True))
    if dist.get_rank() not in ranks:
        raise UsageError(f"rank {dist.get_rank()} is not in the mesh of ranks {ranks}")
    native = _native.Mesh(*(sizes.get(name, 1) for name in CANONICAL))
    return MeshPlace(native, ranks.index(dist.get_rank()), ranks, mesh)


def _advice(names: tuple[str, ...]) -> str:
    """How to get a mesh of our dimensions alone out of one that has others too."""
    ours = ", ".join(f'"{name}"' for name in names if name in CANONICAL)
    return f": give a slice of it, mesh[{ours}]" if ours else ""


def _ranks_of(process_group: ProcessGroup | None) -> tuple[int, list[int] | None]:
    """This rank's place among all that work together, and these; None where it works alone."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UsageError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but torch.distributed is not initialised: call "
                "torch.distributed.init_process_group first, or give rank and world_size"
            )
        return 0, None
    ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD)
    if dist.get_rank() not in ranks:
        raise UsageError(f"rank {dist.get_rank()} is not in the process group of ranks {ranks}")
    return ranks.index(dist.get_rank()), ranks
