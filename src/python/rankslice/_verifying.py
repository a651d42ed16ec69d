"""Proving that tensors are what a checkpoint says they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

from rankslice import _native, _threads
from rankslice._checkpoint import Source
from rankslice._progress import Progress, reporting
from rankslice._taking import State, opened_alike, take
from rankslice.errors import UsageError, VerifyError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Level = Literal["off", "coverage", "full", "reread"]
"""How much is proved; each includes the ones before it.

``coverage``: every rank has the same keys, shapes and dtypes, and all together hold every tensor.
``full``: what was read is what is held, and is the reference where there is one.
``reread``: another rank reads the same when it reads the same bytes again."""


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not as it should be.

    Attributes:
        tensor: its name in the checkpoint's files.
        expert: of a stacked tensor; None where it is not known, or of others.
        rank: who found it; None where it is known of all ranks together only.
        what: in words.
    """

    tensor: str
    expert: int | None
    rank: int | None
    what: str


@dataclass(frozen=True)
class Reread:
    """Who read the bytes again, of all ranks the least that one can say.

    Attributes:
        another_rank: than read them first.
        another_host: than read them first.
        past_page_cache: from the file system itself, where that is known.
        bytes: by all ranks together.
    """

    another_rank: bool
    another_host: bool
    past_page_cache: bool
    bytes: int


@dataclass(frozen=True)
class VerifyReport:
    """What was proved. The same on every rank that took part.

    Attributes:
        level: what was asked for.
        reference: the strongest that was compared with: "against", "store", "manifest", "reread" or "none".
        reread: of that level.
        without_codes: of ``against``: of quantised weights only the values were compared.
        tensors: how many.
        experts: how many blocks of them; of a rank alone, those it holds.
        experts_in_part: of a rank alone: those of which it has some rows only.
        mismatches: of each rank at most the first 1000, and 10000 in all.
        unlisted: how many more there were.
    """

    level: Level
    reference: str
    reread: Reread | None
    without_codes: bool
    tensors: int
    experts: int
    experts_in_part: int
    mismatches: tuple[Mismatch, ...]
    unlisted: int

    @property
    def ok(self) -> bool:
        """Whether all is as it should be."""
        return not self.mismatches


def verify(
    state: State,
    source: Source | None = None,
    *,
    level: Level = "full",
    against: Source | None = None,
    check: bool = True,
    mesh: DeviceMesh | None = None,
    process_group: ProcessGroup | None = None,
    threads: int | None = None,
    progress: Progress = None,
) -> VerifyReport:
    """Proves that the ranks together hold exactly the checkpoint: digests of the tensors in memory, each by the rank
    that holds it, against those of the bytes that were read for them.

    Of a state that ``load`` returned these were digested while loading. Of any other, and of one with another
    ``source``, each rank reads what its tensors are made of, once, in bounded memory. Values that were trained since
    then differ, and are named. Of DTensors that are divided along other axes than the first, or of experts their rows,
    each rank holds a copy of its part until the end.

    Collective over the ranks of the state: those that it was loaded on, or of ``mesh``, or of ``process_group``. A rank
    alone, which loaded with ``rank`` and ``world_size`` and has no torch.distributed, proves what it holds itself.

    Args:
        state: what ``load`` returned, or any state dict or module whose tensors, plain or DTensors, have native names
            or those of transformers' modules.
        source: the checkpoint that the tensors are of; of a state that ``load`` returned it need not be given.
        against: another checkpoint with which what was read is compared too.
        check: raise VerifyError for what differs; else it is in the report.
        mesh: of plain tensors that are this rank's part: with dimensions ``ep``, ``ep_shard``, ``ep_replicate``.
        process_group: the ranks; None: those of the default group, where torch.distributed is initialised.
        threads: as for ``load``.
        progress: True for a bar, or a function (phase, bytes done, bytes in all).

    Raises:
        VerifyError: something differs. It has the report, as its attribute ``report``.
        UsageError: the state does not fit the checkpoint.
        IoError: a file of the checkpoint cannot be read.
        CommError: a rank does not answer, or torch cannot exchange tensors.
    """
    taken = take(state, source, mesh=mesh, process_group=process_group)
    compared = opened_alike("against", against, taken.world)
    threads = _threads.decided(threads, taken.world)
    with reporting(progress, taken.world, taken.is_first) as report:
        if level in ("full", "reread"):
            _native.digest_source(taken.state, taken.world, threads, report)
        found = _native.verify(taken.state, taken.world, level, compared, threads, report)
    if check:
        raise_if_bad(found)
    return _report_of(found)


def require_level(level: Level) -> None:
    if level not in get_args(Level):
        raise UsageError(f"verify: expected one of {', '.join(get_args(Level))}, got {level!r}")


def raise_if_bad(found: _native.VerifyReport) -> None:
    try:
        found.throw_if_bad()
    except VerifyError as error:
        error.report = _report_of(found)
        raise


def _report_of(found: _native.VerifyReport) -> VerifyReport:
    reread = None
    if (again := found.reread) is not None:
        reread = Reread(again.another_rank, again.another_host, again.past_page_cache, again.bytes)
    return VerifyReport(
        level=cast("Level", found.level),
        reference=found.reference,
        reread=reread,
        without_codes=found.without_codes,
        tensors=found.tensors,
        experts=found.experts,
        experts_in_part=found.experts_in_part,
        mismatches=tuple(Mismatch(m.tensor, m.expert, m.rank, m.what) for m in found.mismatches),
        unlisted=found.unlisted,
    )
