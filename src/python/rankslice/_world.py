"""The ranks of a torch process group as a communicator of ours: messages of bytes in host memory."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Callable

from rankslice import _native
from rankslice.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

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
    """What C++ calls: messages between the ranks, by their place in ``ranks``."""

    def __init__(self, group: ProcessGroup, kind: str, ranks: list[int]) -> None:
        import torch.distributed as dist

        self.kind, self.size, self.rank = kind, len(ranks), ranks.index(dist.get_rank())
        self._group, self._ranks = group, ranks

    def start_send(self, data: memoryview, to: int, tag: int) -> Callable[[], object]:
        import torch
        import torch.distributed as dist

        tensor = torch.frombuffer(data, dtype=torch.uint8)
        work = dist.isend(tensor, dst=self._ranks[to], group=self._group, tag=_FIRST_TAG + tag)
        return lambda: (work.wait(), tensor)  # the memory's view stays as long as the message

    def start_receive(self, data: memoryview, source: int, tag: int) -> Callable[[], object]:
        import torch
        import torch.distributed as dist

        tensor = torch.frombuffer(data, dtype=torch.uint8)
        work = dist.irecv(tensor, src=self._ranks[source], group=self._group, tag=_FIRST_TAG + tag)
        return lambda: (work.wait(), tensor)
