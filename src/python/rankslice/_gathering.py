"""One global tensor after another, for weight transfer."""

from __future__ import annotations

import threading
import weakref
from contextlib import ExitStack
from typing import TYPE_CHECKING, Callable, Iterator, Literal

from rankslice import _mesh, _native, _progress, _steps, _threads
from rankslice._checkpoint import Source
from rankslice._handover import Handover
from rankslice._state import StateDict
from rankslice._taking import State, take
from rankslice.errors import UsageError

if TYPE_CHECKING:
    from types import TracebackType

    import torch
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


def gather(
    state: State,
    source: Source | None = None,
    *,
    receivers: Literal["one", "hosts", "all"] = "one",
    rank: int | None = None,
    include: str | None = None,
    exclude: str | None = None,
    layout: Literal["auto", "source"] = "auto",
    gdn_dtype: Literal["preserve", "upstream"] = "preserve",
    mesh: DeviceMesh | None = None,
    process_group: ProcessGroup | None = None,
    progress: _progress.Progress = None,
) -> Gathering:
    """Iterates over (Hugging Face name, whole tensor) of what all ranks hold, on the ranks that receive.

    Tensors are on the host, in the dtypes and shapes that ``to_hf`` writes, in the same order every time, of split
    experts those of one layer together. While one is used, the next one is gathered, on a thread of its own, and then
    waits: beside the tensors that the loop keeps, a receiving rank has memory for one tensor and three experts, or some
    MiB; other ranks for three experts; and every rank for a copy of its part of all DTensors that are divided along
    other axes than the first, or of experts their rows. On ranks that receive nothing the loop ends without a turn,
    when all is done. Every rank must go through its loop::

        for name, tensor in rankslice.gather(state):
            send(name, tensor)

    What was handed out is proved, by digests, to be what all ranks hold when the loop ends: until then, and when it
    raises, it must not count. Leaving the loop early, or by an exception, ends the call on all ranks, with an error on
    the others; ``with rankslice.gather(state) as tensors:`` does so at once even where something else still holds the
    iterator. Until the loop has ended, the tensors of ``state`` must stay as they are, and nothing else may use
    ``process_group``; other groups of the same ranks may be used.

    The other ranks wait while a loop uses a tensor: not longer than the timeout of ``process_group``.

    Collective over the ranks of ``state``, which all pass the same arguments.

    Args:
        state: what ``load`` returned, or any state dict or module whose tensors, plain or DTensors, have native names
            or those of transformers' modules.
        source: the checkpoint that the tensors are of; of a state that ``load`` returned it need not be given.
        receivers: ``one`` rank, the first rank of each of the ``hosts``, or ``all``.
        rank: of ``one``: which, as torch.distributed numbers it in the whole job; None: the first.
        include: only names that match this regular expression from their first character on.
        exclude: without those that match this one.
        layout: of tensors that were dequantised: ``auto`` as they are held.
        gdn_dtype: of parameters that training keeps in float32: ``preserve`` that of the source, ``upstream`` float32.
        mesh: of plain tensors that are this rank's part: with dimensions ``ep``, ``ep_shard``, ``ep_replicate``.
        process_group: the ranks; None: those of the default group, where torch.distributed is initialised.
        progress: True for a bar, or a function (phase, bytes done, bytes in all), called on the thread that gathers.

    Raises:
        UsageError: a state that lacks tensors, a selection that takes none, arguments that differ between ranks.
        VerifyError: the ranks together do not hold every tensor once, or something else was handed out than is held.
        CommError: a rank does not answer.
        UnexpectedError: another rank left its loop.
        Each on all ranks alike, here or in the loop.
    """
    taken = take(state, source, mesh=mesh, process_group=process_group)
    world = taken.world or _native.make_solo_communicator()
    shown = ExitStack()
    report = shown.enter_context(_progress.reporting(progress, taken.world, taken.is_first))
    receiver = _steps.agreed(world, lambda: _place_of(rank, state, world, mesh, process_group))
    handover = Handover(report)

    def work() -> None:
        _native.gather(
            handover, taken.state, world, receivers, receiver, include or "", exclude or "", layout, gdn_dtype,
            _threads.shared(taken.world),
        )  # fmt: skip

    def run() -> None:
        with shown:
            work()

    return Gathering(handover, run)


class Gathering(Iterator[tuple[str, "torch.Tensor"]]):
    """What ``gather`` returns: an iterator, and a context at whose end the gathering has ended."""

    def __init__(self, handover: Handover, work: Callable[[], None]) -> None:
        self._handover = handover
        thread = threading.Thread(target=_run, args=(work, handover), name="rankslice gather", daemon=True)
        self._end = weakref.finalize(self, _end, handover, thread, threading.get_ident())
        thread.start()

    def __next__(self) -> tuple[str, torch.Tensor]:
        if not self._end.alive:
            raise StopIteration
        try:
            taken = self._handover.take()
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        if taken is None:
            self.close()
            raise StopIteration
        return taken

    def close(self) -> None:
        """Ends the gathering, if it goes on, on all ranks, and waits until it has ended."""
        self._end()

    def __enter__(self) -> Gathering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._handover.leave(error)
        self.close()


def _run(work: Callable[[], None], handover: Handover) -> None:
    try:
        work()
    except BaseException as error:
        handover.end(error)
    else:
        handover.end(None)


def _end(handover: Handover, thread: threading.Thread, owner: int) -> None:
    """Also at exit, and when nobody has the iterator any more: that may be found out on any thread, of which only the
    owner's waits, for others may be what the gathering itself waits for."""
    handover.leave()
    if threading.get_ident() == owner:
        thread.join()


def _place_of(
    rank: int | None,
    state: State,
    world: _native.Communicator,
    mesh: DeviceMesh | None,
    process_group: ProcessGroup | None,
) -> int:
    """Where a rank of torch.distributed stands among those of a state."""
    if rank is None:
        return 0
    place = state.place if mesh is None and isinstance(state, StateDict) else _mesh.place(mesh=mesh)
    ranks = place.ranks
    if ranks is None:
        import torch.distributed as dist

        ranks = [0] if world.size == 1 else dist.get_process_group_ranks(process_group or dist.group.WORLD)
    if rank not in ranks:
        raise UsageError(f"gathering to rank {rank}, which is none of the ranks of the state, {ranks}")
    return ranks.index(rank)
