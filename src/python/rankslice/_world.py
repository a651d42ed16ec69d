"""The ranks of a torch process group as a communicator of ours: messages of bytes in host memory."""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Callable

from rankslice import _native
from rankslice.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup, Store, Work

    _Job = tuple[Callable, tuple, Callable[[object, "BaseException | None"], None]]

_FIRST_TAG = 20_000
"""Tags from here on are ours: far from a caller's own messages, and what MPI has at least (32767) is above."""

_companions: weakref.WeakKeyDictionary[ProcessGroup, dict[tuple[int, ...], ProcessGroup]] = weakref.WeakKeyDictionary()


def communicator(process_group: ProcessGroup | None = None, ranks: list[int] | None = None) -> _native.Communicator:
    """A communicator of ``ranks``, which number theirs in this order. Collective over them.

    Its messages go through the CPU backend of the group. A group without one (NCCL alone) gets a gloo companion of
    these ranks, made once and kept as long as the group.

    Args:
        process_group: has all of these ranks, and may have more; None: the default group.
        ranks: as torch.distributed numbers them in the whole job; None: those of the group.

    Raises:
        UsageError: there is no such group, or this rank or another is not in it. Before anything collective.
        CommError: a rank does not answer.
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise UsageError("torch.distributed is not initialised: call torch.distributed.init_process_group first")
    group = process_group or dist.group.WORLD
    members = dist.get_process_group_ranks(group)
    ranks = members if ranks is None else ranks
    if absent := sorted(set(ranks) - set(members)):
        raise UsageError(f"ranks {absent} of {ranks} are not in the process group, which has ranks {members}")
    if dist.get_rank() not in ranks:
        raise UsageError(f"rank {dist.get_rank()} is none of the ranks that work together, {ranks}")
    if len(ranks) == 1:
        return _native.make_solo_communicator()
    return _native.make_communicator(_Messages(*_with_cpu(group, ranks), ranks))


def cpu_backend(config: str) -> str | None:
    """The backend that a group has for memory of the CPU, of what ``torch.distributed.get_backend_config`` says."""
    return dict(part.split(":", 1) for part in config.split(",") if ":" in part).get("cpu")


def _with_cpu(group: ProcessGroup, ranks: list[int]) -> tuple[ProcessGroup, str]:
    """A group that sends host memory between these ranks, and its backend."""
    import torch.distributed as dist

    backend = cpu_backend(dist.get_backend_config(group))
    if backend is not None:
        return group, backend
    companions = _companions.setdefault(group, {})
    members = tuple(sorted(ranks))
    if members not in companions:
        companions[members] = dist.new_group(members, backend="gloo", use_local_synchronization=True)
    return companions[members], "gloo"


class _Messages:
    """What C++ has of a process group: messages between the ranks, by their place in ``ranks``.

    Attributes:
        jobs: what to call, its arguments, and what then gets (result, exception): served by a thread of this group.
        between_looks: seconds from one look for other ranks' interrupts to the next.
        largest_message: in bytes; MPI counts up to 2^31.
    """

    largest_message = 1 << 30

    def __init__(self, group: ProcessGroup, kind: str, ranks: list[int]) -> None:
        import torch.distributed as dist

        self.kind, self.size, self.rank = kind, len(ranks), ranks.index(dist.get_rank())
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.between_looks = max(0.5, self.size / 2000)  # all look at one store: 2000 times a second at most
        self._group, self._ranks, self._flag = group, ranks, _Flag(self.rank, self.size)
        threading.Thread(target=_serve, args=(self.jobs,), name="rankslice messages", daemon=True).start()
        weakref.finalize(self, self.jobs.put, None)
        weakref.finalize(self, self._flag.leave).atexit = False  # then the store may be gone already

    def start_send(self, data: memoryview, to: int, tag: int) -> Callable[[], object]:
        import torch
        import torch.distributed as dist

        tensor = torch.frombuffer(data, dtype=torch.uint8)
        return _wait(tensor, dist.isend(tensor, dst=self._ranks[to], group=self._group, tag=_FIRST_TAG + tag))

    def start_receive(self, data: memoryview, source: int, tag: int) -> Callable[[], object]:
        import torch
        import torch.distributed as dist

        tensor = torch.frombuffer(data, dtype=torch.uint8)
        return _wait(tensor, dist.irecv(tensor, src=self._ranks[source], group=self._group, tag=_FIRST_TAG + tag))

    def name_flag(self, name: bytes) -> None:
        """What the ranks of this communicator have alike, and no other has."""
        self._flag.named(name.hex())

    def stop(self) -> None:
        """Stops the others at their next block."""
        self._flag.raise_here()

    def stopped_by(self) -> int | None:
        """The rank that stopped all, if one did."""
        return self._flag.raised_by()


class _Flag:
    """Raised by a rank that was interrupted. A rank at work looks at it, as it does not read messages; and one that
    waits, as torch's waits cannot be broken off. It stands in the job's store; without one it is never seen raised."""

    def __init__(self, rank: int, size: int) -> None:
        from torch.distributed import distributed_c10d

        self._rank, self._size = rank, size
        self._key: str | None = None
        self._is_raised_here = False
        self._raised_by: int | None = None
        try:
            self._store: Store | None = distributed_c10d._get_default_store()
        except (AttributeError, ValueError):  # not public
            self._store = None

    def named(self, name: str) -> None:
        """From here on the ranks have it in common."""
        self._key = f"rankslice/interrupt/{name}"
        if self._is_raised_here:
            self.raise_here()

    def raise_here(self) -> None:
        self._is_raised_here = True
        if self._store is not None and self._key is not None:
            with suppress(RuntimeError):  # a store that went away with its rank: the group says more of that
                self._store.set(self._key, str(self._rank))

    def raised_by(self) -> int | None:
        if self._raised_by is None and self._store is not None and self._key is not None:
            with suppress(RuntimeError):
                if self._store.check([self._key]):
                    self._raised_by = int(self._store.get(self._key))
        return self._raised_by

    def leave(self) -> None:
        """Nobody looks any more here. Of the ranks that saw it raised, which are all, the last one takes it away."""
        if self._store is not None and (self._is_raised_here or self._raised_by is not None):
            with suppress(RuntimeError):
                left = f"{self._key}/left"
                if self._store.add(left, 1) == self._size:
                    self._store.delete_key(self._key)
                    self._store.delete_key(left)


def _wait(tensor: Tensor, work: Work) -> Callable[[], object]:
    """Waits for a message; keeps the view of its memory as long."""
    return lambda: (work.wait(), tensor)[0]


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        _do(*job)
        del job  # what it holds must not stay until the next one


def _do(function: Callable, arguments: tuple, done: Callable[[object, BaseException | None], None]) -> None:
    try:
        result = function(*arguments)
    except BaseException as error:  # C++ waits for an answer, whatever it is
        done(None, error.with_traceback(None))
    else:
        done(result, None)
