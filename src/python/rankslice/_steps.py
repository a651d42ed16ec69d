"""Steps that ranks take together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, TypeVar

from rankslice import _native
from rankslice.errors import Error

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from rankslice._mesh import MeshPlace

Result = TypeVar("Result")


def world_of(place: MeshPlace, process_group: ProcessGroup | None) -> _native.Communicator | None:
    """The ranks that work together, in the mesh's canonical order, or None where each works alone. Collective."""
    if place.ranks is None:
        return None
    from rankslice import _world

    return _world.communicator(process_group, place.ranks)


def agreed(world: _native.Communicator | None, step: Callable[[], Result]) -> Result:
    """What a step gives that can fail on one rank alone: then all raise what the lowest failing rank did.
    Collective."""
    if world is None:
        return step()
    results: list[Result] = []
    causes: list[BaseException | None] = []

    def take() -> None:
        try:
            results.append(step())
        except Error as error:
            causes.append(error.__cause__)
            raise

    try:
        _native.on_every_rank(world, take)
    except Error as error:  # made anew from its message
        if causes and error.__cause__ is None:
            error.__cause__ = causes[0]
        raise
    return results[0]
