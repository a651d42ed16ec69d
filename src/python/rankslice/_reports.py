"""What is in a checkpoint, and what ranks would read and hold of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rankslice import _native
from rankslice._checkpoint import Source, opened

if TYPE_CHECKING:
    import os
    from typing import Literal

    import torch

    from rankslice._filling import Dense


class Facts(dict[str, Any]):
    """What the program prints with ``--json``; ``str()`` of it is what it prints without."""

    def __init__(self, told: tuple[str, str]) -> None:
        super().__init__(json.loads(told[0]))
        self._text = told[1]

    def __str__(self) -> str:
        return self._text.rstrip("\n")


def inspect(
    source: Source,
    *,
    family: str = "auto",
    expert_layout: Literal["auto", "hub", "transformers"] = "auto",
    dtype: torch.dtype | str | None = None,
    text_only: bool | None = None,
    manifest: str | os.PathLike | bool = True,
    include: str | None = None,
    exclude: str | None = None,
) -> Facts:
    """Says what is in a checkpoint: family, layouts, tensors, experts, bytes, oddities. Reads headers only. Local.

    Returns the dict that ``rankslice inspect --json`` prints (``rankslice.inspect/1``); ``print`` shows it as
    ``rankslice inspect`` does.

    Args:
        source: a path, or what ``open`` returned; all else as there.

    Raises:
        As ``open``.
    """
    checkpoint = opened(source, None, family=family, expert_layout=expert_layout, dtype=dtype, text_only=text_only,
                        manifest=manifest, include=include, exclude=exclude)  # fmt: skip
    return Facts(_native.inspect(checkpoint, dtype is not None))


def plan(
    source: Source,
    *,
    ranks: int,
    ep: int | None = None,
    ep_shard: int | None = None,
    rank: int | None = None,
    quantization: bool = False,
    dense: Dense = "auto",
    family: str = "auto",
    expert_layout: Literal["auto", "hub", "transformers"] = "auto",
    dtype: torch.dtype | str | None = None,
    text_only: bool | None = None,
    include: str | None = None,
    exclude: str | None = None,
) -> Facts:
    """Says what ranks would read and hold of a checkpoint. Reads headers only, and needs no other rank. Local.

    Returns the dict that ``rankslice plan --json`` prints (``rankslice.plan/1``); ``print`` shows it as ``rankslice
    plan`` does.

    Args:
        source: a path, or what ``open`` returned.
        ranks: how many there would be.
        ep: how many of them share the experts; all where it is not given.
        ep_shard: how many share each expert's rows; 1 where it is not given.
        rank: every byte range that this rank reads, instead of a line for each rank.
        quantization: the names, dtypes and shapes of a block-FP8 checkpoint of the same model that ``rank``, or the
            first one, would fill its tensors from; ``include`` and ``exclude`` then judge each name by itself.
        dense: as for ``load``; ``auto`` is each-rank here, as no hosts are known.
        dtype, family, …: as in ``open``.

    Raises:
        PlanError: the ranks cannot be arranged so, or the experts divided, or there is no such rank.
        Else as ``open``.
    """
    if quantization:
        include_keys, exclude_keys, include, exclude = include or "", exclude or "", None, None
    checkpoint = opened(source, None, family=family, expert_layout=expert_layout, dtype=dtype, text_only=text_only,
                        include=include, exclude=exclude)  # fmt: skip
    mesh = _native.make_mesh(ranks, 0 if ep is None else ep, 1 if ep_shard is None else ep_shard)
    if quantization:
        return Facts(_native.plan_keys(checkpoint, mesh, rank or 0, include_keys, exclude_keys))
    return Facts(_native.plan(checkpoint, mesh, rank, dense, dtype is not None))
