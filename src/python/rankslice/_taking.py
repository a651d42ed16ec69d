"""What functions are given: a state dict of any kind as C++ sees it, and the ranks that hold it together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union

import torch
from torch import nn

from rankslice import _mesh, _names, _native, _steps, _tensors, _world
from rankslice._checkpoint import Source, opened
from rankslice._fitting import fitting, without_extra_state
from rankslice._state import StateDict, adopt, natives
from rankslice._wrappers import without_wrappers
from rankslice.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

State = Union[StateDict, Mapping[str, torch.Tensor], nn.Module]
"""What ``load`` returned, any other state dict, or a module, which stands for its ``state_dict()``."""

Dtype = Literal["held", "source"]
"""``held``: values are of the dtype in which they are held. ``source``: they are rounded to that of the checkpoint."""


class Taken(NamedTuple):
    """A state and the ranks that hold it together; None: this rank works alone."""

    state: _native.StateDict
    world: _native.Communicator | None

    @property
    def is_first(self) -> bool:
        return self.world is None or self.world.rank == 0


def take(
    state: State,
    source: Source | None,
    *,
    mesh: DeviceMesh | None,
    process_group: ProcessGroup | None,
    dtype: Dtype = "held",
    **without_source: Any,
) -> Taken:
    """Collective over the ranks that hold the state.

    Raises:
        UsageError: the arguments make no sense together, or the state does not fit the checkpoint.
        CommError: tensors cannot be exchanged.
        Each on all ranks alike.
    """
    place = _place_of(state, mesh, process_group)
    world = _world_of(place, process_group)
    tensors = _steps.agreed(world, lambda: _tensors_of(state, dtype))
    checkpoint = _checkpoint_of(tensors, source, world, dtype)

    def fitting_ones() -> dict[str, torch.Tensor]:
        if checkpoint is None and not without_source:
            raise UsageError("a state dict without a checkpoint: give source")
        return _fitting_of(tensors, checkpoint, rounding=dtype == "source")

    fit = _steps.agreed(world, fitting_ones)
    # What may not be rounded has been refused.
    adopted = adopt(fit, checkpoint, place, rounding=True, world=world, **without_source)
    if isinstance(tensors, StateDict) and checkpoint is tensors.checkpoint:
        adopted.read = tensors._digests
    return Taken(adopted, world)


def opened_alike(what: str, source: Source | None, world: _native.Communicator | None) -> _native.Checkpoint | None:
    """What an argument of this name says, of which all ranks must have the same kind: paths they open together.
    Collective."""
    kind = _steps.agreed(world, lambda: _kind_of(what, source))
    if world is not None:
        _native.require_same(world, kind, f"{what}: is {kind} here, unlike on rank 0")
    return None if source is None else opened(source, world)


def _kind_of(what: str, source: Source | None) -> str:
    if source is None:
        return "not given"
    if isinstance(source, _native.Checkpoint):
        return "an open checkpoint"
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(f"{what}: expected a path or an open checkpoint, got {type(source).__name__}")
    return "a path"


def _tensors_of(state: State, dtype: str) -> Mapping[str, torch.Tensor]:
    if dtype not in ("held", "source"):
        raise UsageError(f'dtype: expected "held" or "source", got {dtype!r}')
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    if not isinstance(tensors, Mapping):
        raise UsageError(
            f"state: expected what load returned, a state dict or a module, got {type(state).__name__}: every rank "
            "gives what it holds"
        )
    for name, tensor in without_extra_state(tensors).items():
        if not isinstance(tensor, torch.Tensor):
            raise UsageError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    return tensors


def _fitting_of(
    tensors: Mapping[str, torch.Tensor], checkpoint: _native.Checkpoint | None, rounding: bool
) -> dict[str, torch.Tensor]:
    tensors = without_wrappers(without_extra_state(tensors))
    if checkpoint is None:
        return tensors
    table = _names.table(checkpoint, _names.names_of(checkpoint, tensors))
    return fitting(tensors, checkpoint, table, natives(checkpoint), rounding)


def _place_of(state: State, mesh: DeviceMesh | None, process_group: ProcessGroup | None) -> _mesh.MeshPlace:
    if mesh is None and isinstance(state, StateDict):
        return state.place
    return _mesh.place(mesh=mesh, process_group=process_group)


def _world_of(place: _mesh.MeshPlace, process_group: ProcessGroup | None) -> _native.Communicator | None:
    """The ranks that hold a state. Those that loaded without one another work together where torch.distributed runs."""
    import torch.distributed as dist

    if place.ranks is not None or place.mesh.ranks == 1 or not (dist.is_available() and dist.is_initialized()):
        return _steps.world_of(place, process_group)
    return _world.communicator(process_group)


def _checkpoint_of(
    tensors: Mapping[str, torch.Tensor], source: Source | None, world: _native.Communicator | None, dtype: Dtype
) -> _native.Checkpoint | None:
    """The checkpoint that tensors are of, with parameters in the dtype in which they are held, where that is one."""
    loaded = tensors.checkpoint if isinstance(tensors, StateDict) else None
    if world is not None:
        options = f"dtype={dtype!r}, and the state {'was' if loaded is not None else 'was not'} returned by load"
        _native.require_same(world, options, f"{options}, unlike on rank 0")
    checkpoint = opened_alike("source", source, world)
    if source is None and dtype == "source" and loaded is not None:
        return opened(loaded.path, world) if any(p.converted for p in loaded.parameters) else loaded
    if source is None or checkpoint is None:
        return loaded
    held = _steps.agreed(world, lambda: _dtype_held(tensors, checkpoint) if dtype == "held" else None)
    if world is not None:
        _native.require_same(world, str(held), f"its tensors are all {held}, or not all of one dtype, unlike rank 0's")
    if held is None or isinstance(source, _native.Checkpoint):
        return checkpoint
    return opened(source, world, dtype=held)


def _dtype_held(tensors: Mapping[str, torch.Tensor], checkpoint: _native.Checkpoint) -> torch.dtype | None:
    """The dtype of all floating tensors, where it is one, and values of the checkpoint must be converted to it: master
    weights. Those that are only narrower than training keeps them (rule 55) are widened without."""
    tensors = without_wrappers(tensors)
    table = _names.table(checkpoint, _names.names_of(checkpoint, tensors))
    expected = {parameter.fqn: _tensors.torch_dtype(parameter.dtype) for parameter in checkpoint.parameters}
    held = {(t.dtype, expected[table[name].fqn]) for name, t in tensors.items() if name in table}
    dtypes = {found for found, _ in held if found.is_floating_point}
    fits = all(found == wanted or torch.promote_types(found, wanted) == wanted for found, wanted in held)
    return dtypes.pop() if len(dtypes) == 1 and not fits else None
