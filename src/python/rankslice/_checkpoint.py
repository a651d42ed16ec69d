"""Opening checkpoints."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, Union

from rankslice import _native, _stores, _threads
from rankslice._native import Checkpoint
from rankslice.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

Source = Union[str, os.PathLike, Checkpoint]
"""A path, or what ``open`` returned."""


def open(
    path: str | os.PathLike,
    *,
    process_group: ProcessGroup | None = None,
    family: str = "auto",
    source: str | os.PathLike | None = None,
    expert_layout: Literal["auto", "hub", "transformers"] = "auto",
    dtype: torch.dtype | str | None = None,
    text_only: bool | None = None,
    manifest: str | os.PathLike | bool = True,
    include: str | None = None,
    exclude: str | None = None,
) -> Checkpoint:
    """Opens a folder of safetensors files, or what ``save_shards`` or ``save_store`` wrote: names, shapes and places,
    no values.

    Collective over ``process_group`` where one is given, of which one rank reads the headers; local without.

    Args:
        family: ``qwen3_5_moe``, ``qwen3_vl_moe``, ``qwen3_moe``, ``qwen3_next``; auto: as config.json says.
        source: of shards: the checkpoint whose headers and side files count, instead of the recorded one.
        expert_layout: how grouped experts lie in the files; auto: as their shapes say.
        dtype: in which tensors are held: bfloat16, float16 or float32. None: in their own, quantised ones in that of
            config.json. Parameters that training keeps in float32 are so in any case.
        text_only: only the language model, names without ``language_model.``; None: of text models.
        manifest: digests of the files, recorded earlier; True: those in the folder, if there are any.
        include: only tensors whose names in the files match this regular expression from their first character on.
        exclude: without those that match this one.

    Raises:
        IoError: a file is missing or cannot be read.
        FormatError: a file breaks its format, or does not fit its model.
        UsageError: grouped experts of which the shapes do not tell the layout; an expression that cannot be read, or
            that leaves no tensor.
    """
    world = None
    if process_group is not None:
        from rankslice import _world

        world = _world.communicator(process_group)
    return opened(path, world, family=family, source=source, expert_layout=expert_layout, dtype=dtype,
                  text_only=text_only, manifest=manifest, include=include, exclude=exclude)  # fmt: skip


def opened(
    given: Source,
    world: _native.Communicator | None,
    *,
    family: str = "auto",
    source: str | os.PathLike | None = None,
    expert_layout: str = "auto",
    dtype: torch.dtype | str | None = None,
    text_only: bool | None = None,
    manifest: str | os.PathLike | bool = True,
    include: str | None = None,
    exclude: str | None = None,
) -> Checkpoint:
    """A checkpoint of what a function was given. Collective over ``world`` where there is one."""
    if isinstance(given, Checkpoint):
        if dtype is not None:
            raise UsageError("dtype: the checkpoint is open already: give dtype to rankslice.open")
        checkpoint = given
    else:
        checkpoint = _native.open_checkpoint(
            os.fspath(given),
            world,
            family,
            os.fspath(source or ""),
            expert_layout,
            _dtype_name(dtype),
            text_only,
            "" if isinstance(manifest, bool) else os.fspath(manifest),
            manifest is False,
            _stores.library_for,
            _threads.shared(world),
        )
    return _native.select(checkpoint, include or "", exclude or "")


def _dtype_name(dtype: torch.dtype | str | None) -> str | None:
    if dtype is None:
        return None
    from rankslice._tensors import dtype_name

    return dtype_name(dtype)
