"""Loading a checkpoint into fresh memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rankslice import _mesh, _names, _native, _progress, _steps, _tensors, _threads
from rankslice._checkpoint import Source, opened
from rankslice._filling import Cache, Dense, Filling, Io, require_dense, require_real
from rankslice._state import Native, StateDict, adopt, natives, parts_of
from rankslice._verifying import Level, raise_if_bad, require_level
from rankslice.errors import PlanError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import Placement

    from rankslice._mesh import MeshPlace
    from rankslice._names import Names


def load(
    source: Source,
    *,
    mesh: DeviceMesh | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    ep: int | None = None,
    ep_shard: int | None = None,
    process_group: ProcessGroup | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    names: Names = "native",
    include: str | None = None,
    exclude: str | None = None,
    verify: Level = "full",
    dense: Dense = "auto",
    io: Io = "auto",
    cache: Cache = "keep",
    threads: int | None = None,
    hugepages: _tensors.HugePages = "auto",
    progress: _progress.Progress = None,
) -> StateDict:
    """Loads this rank's part of a checkpoint: its experts of every stacked tensor, and all other tensors.

    Reads each byte that the rank owns once, and of the experts no other. With ``mesh``, tensors are DTensors: experts
    Shard(0) along ``ep`` and Shard(1) along ``ep_shard``, all else Replicate; where ``ep`` is the only dimension with
    more than one rank they are on its 1-D submesh. Otherwise tensors are plain, the rank's part of each.

    Collective over the ranks of ``mesh``, ``process_group`` or torch.distributed, and then all ranks pass the same
    arguments; with ``rank`` and ``world_size`` each rank loads alone.

    Args:
        source: a folder of safetensors files, one that ``save_shards`` wrote, or what ``open`` returned.
        mesh: with dimensions among ``ep``, ``ep_shard`` and ``ep_replicate``.
        rank: of ``world_size`` ranks that load without one another.
        ep: how many ranks share the experts; all where it is not given.
        ep_shard: how many ranks share each expert's rows.
        device: where tensors are to be; None: on the mesh's kind of device, or the host.
        dtype: of floating tensors: bfloat16, float16 or float32; None: their own.
        names: ``native``, or ``transformers`` for those of its modules: the experts then are views with axes 1 and 2
            exchanged.
        include: only tensors whose names in the files match this regular expression from their first character on.
        exclude: without those that match this one.
        verify: what is proved of the loaded tensors before they are returned, as by ``rankslice.verify``: ``full``,
            that they are what was read, and that what the checkpoint recorded; ``coverage``, only that the ranks
            together have all; ``reread``, also that reading again gives the same; ``off``, nothing. Of a rank alone
            ``coverage`` proves nothing, and rereading is its own.
        dense: who reads the tensors that every rank has whole, and short rows that ``ep_shard`` divides: ``each-rank``
            all it needs, or the ranks each byte ``once``, a share each, which they pass on; ``auto``: once where the
            ranks are on several hosts. A tensor misread by the one that reads it is the same on all then: only what the
            checkpoint recorded, or ``verify="reread"``, finds that.
        io: how files are read: ``pread``, ``io_uring`` or ``direct``, past the page cache; ``auto``: what the page
            cache has from there, and the rest past it, if it is on a local disk.
        cache: ``drop`` lets the page cache forget what it did not have before.
        threads: that move and digest bytes on this rank; None: as many as it has processors, or its share of those that
            other ranks of its host may use too. Tensors on a GPU are loaded by one.
        hugepages: ``on`` for tensors on huge pages of host memory or UsageError, ``off`` for small pages, ``auto`` for
            huge ones where the system gives them.
        progress: True for a bar, or a function (phase, bytes done, bytes in all).

    Raises:
        IoError, FormatError: of the files.
        VerifyError: something differs. It has the report, as its attribute ``report``.
        CommError: a rank does not answer.
        UsageError: arguments that make no sense together; the ranks cannot be arranged so, or the experts divided.
        Each on all ranks alike.
    """
    place = _mesh.place(mesh, rank, world_size, ep, ep_shard, process_group)
    require_level(verify)
    require_dense(dense)
    to_device = _device_of(device, place)
    world = _steps.world_of(place, process_group)
    threads = _threads.decided(threads, world)
    checkpoint = opened(source, world, dtype=dtype, include=include, exclude=exclude)

    def prepare() -> tuple[dict[str, torch.Tensor], Filling]:
        _names.require_known(names)
        fresh = _fresh_tensors(checkpoint, place, to_device, hugepages)
        return fresh, Filling(checkpoint, place, fresh, "native")

    tensors, filling = _steps.agreed(world, prepare)
    with _progress.reporting(progress, world, place.rank == 0) as report:
        filling.fill(world, verify, dense, (io, cache, threads), report, prove=False)
        state = _steps.agreed(world, lambda: adopt(tensors, checkpoint, place))
        state.read = filling.digests

        def prove_pages() -> None:
            if hugepages == "on":
                _native.require_on_huge_pages(state)

        _steps.agreed(world, prove_pages)
        raise_if_bad(_native.verify(state, world, verify, None, threads, report))
    if place.device_mesh is not None:
        tensors = _as_dtensors(checkpoint, tensors, place.device_mesh)
    loaded = StateDict(tensors, checkpoint, place, filling)
    return loaded if names == "native" else loaded.renamed(names)


def _device_of(device: torch.device | str | None, place: MeshPlace) -> torch.device:
    if device is None:
        device = "cpu" if place.device_mesh is None else place.device_mesh.device_type
    return require_real(torch.device(device))


def _fresh_tensors(
    checkpoint: _native.Checkpoint, place: MeshPlace, device: torch.device, hugepages: _tensors.HugePages
) -> dict[str, torch.Tensor]:
    """Memory for what this rank has of every tensor, each of its own, so that it can be freed alone."""
    parts = parts_of(checkpoint, place)
    if place.device_mesh is not None:
        for native in natives(checkpoint).values():
            _require_even(native, place.mesh.ep)
    held = list(natives(checkpoint).values())
    memory = _tensors.side_by_side([(n.dtype, parts[n.fqn].shape) for n in held], device, hugepages)
    return {n.fqn: tensor for n, tensor in zip(held, memory)}


def _require_even(native: Native, ep: int) -> None:
    """Rule 12: a DTensor's experts are divided as torch.chunk does, which is not what rule 9 says of uneven ones."""
    if not native.stacked or native.shape[0] % ep == 0:
        return
    raise PlanError(
        f"{native.fqn}: {native.shape[0]} experts over ep={ep} are uneven, and a DTensor cannot say so: load plain "
        "tensors with rank= and world_size=, or choose an ep that divides them",
        tensor=native.fqn,
    )


def _as_dtensors(
    checkpoint: _native.Checkpoint, tensors: dict[str, torch.Tensor], device_mesh: DeviceMesh
) -> dict[str, torch.Tensor]:
    mesh = _experts_mesh(device_mesh)
    return {
        n.fqn: _tensors.as_dtensor(
            tensors[n.fqn], _tensors.torch_shape(n.dtype, n.shape), mesh, _placements(mesh, n.stacked)
        )
        for n in natives(checkpoint).values()
    }


def _experts_mesh(device_mesh: DeviceMesh) -> DeviceMesh:
    """Rule 16: only `ep`, where no other dimension has more than one rank."""
    names = device_mesh.mesh_dim_names
    others = [device_mesh.size(n) for n, name in enumerate(names) if name != "ep"]
    return device_mesh["ep"] if others and "ep" in names and max(others) == 1 else device_mesh


def _placements(mesh: DeviceMesh, stacked: bool) -> list[Placement]:
    from torch.distributed.tensor import Replicate, Shard

    axes = {"ep": 0, "ep_shard": 1} if stacked else {}
    return [Shard(axes[name]) if name in axes else Replicate() for name in mesh.mesh_dim_names]
