"""Writing state dicts: the Hugging Face checkpoint of all ranks together, and each rank's own shard."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from rankslice import _native, _steps, _threads
from rankslice._checkpoint import Source
from rankslice._progress import Progress, reporting
from rankslice._state import MAX_FILE_BYTES
from rankslice._taking import Dtype, State, opened_alike, take

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Resumed:
    """What was taken over from a call that did not come to its end.

    Attributes:
        segments: files, of a store pieces, that were whole, and were read back again.
        of: all of them.
        bytes: tensor bytes of those that were taken over.
    """

    segments: int
    of: int
    bytes: int


def resumed(report: _native.ExportReport | _native.SaveReport) -> Resumed | None:
    found = report.resumed
    return None if found is None else Resumed(found.segments, found.of, found.bytes)


Headers = Literal["source", "selection", "converted", "state"]


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes:
        headers: "source": those of the checkpoint, byte for byte. Else fresh, and why: "selection", "converted" or
            "state".
        bytes_read: by this rank, of the originals that were copied.
        bytes_written: tensor bytes that this rank wrote.
        files: of tensors, in all.
        resumed: what ``resume`` found and took over; None where that was nothing.
    """

    headers: Headers
    bytes_read: int
    bytes_written: int
    files: int
    resumed: Resumed | None = None


def to_hf(
    state: State,
    out_dir: str | os.PathLike,
    *,
    source: Source | None = None,
    process_group: ProcessGroup | None = None,
    mesh: DeviceMesh | None = None,
    overwrite: bool = False,
    include: str | None = None,
    exclude: str | None = None,
    dtype: Dtype = "held",
    export_layout: Literal["auto", "source"] = "auto",
    originals: Source | None = None,
    gdn_dtype: Literal["preserve", "upstream"] = "preserve",
    max_file_bytes: int = MAX_FILE_BYTES,
    gather: bool = False,
    resume: bool = False,
    family: str | None = None,
    expert_layout: Literal["hub", "transformers"] = "hub",
    mtp_experts: Literal["grouped", "split"] | None = None,
    side_files: str | os.PathLike | None = None,
    partial: bool = False,
    progress: Progress = None,
) -> ExportReport:
    """Writes the Hugging Face checkpoint that the ranks hold together, every rank its own parts, in place.

    Headers, index, config.json, tokenizer and so on are those of the checkpoint that the tensors are of: values that
    were not changed give its files byte for byte. Nothing stands under ``out_dir`` until all is written, synced and
    read back; where a rank fails, all raise the same, and nothing is left behind but what ``resume`` asks for.

    Every tensor of the checkpoint must be there, each in all its parts on some of the ranks; copies must be equal.
    What else is in a state dict is refused, but for names with ``_extra_state`` and other names of tensors that are
    tied. Of a pipeline stage ``source=rankslice.open(path, include=…)`` says what its part is.

    Tensors that are not contiguous, in another dtype or on another device are brought to the host a few MiB or one
    expert at a time. DTensors that are divided along other axes than the first, or of experts their rows, are exchanged
    first: until the end each rank holds a copy of its part of all of those.

    Collective over the ranks of the state: those that it was loaded on, or of ``mesh``, or of ``process_group``.

    Args:
        state: what ``load`` returned, or any state dict or module whose tensors, plain or DTensors, have native names
            or those of transformers' modules.
        source: the checkpoint that the tensors are of; of a state that ``load`` returned it need not be given, and of
            one without any checkpoint ``family`` is given in its place.
        process_group: the ranks; None: those of the default group, where torch.distributed is initialised.
        mesh: of plain tensors that are this rank's part: with dimensions ``ep``, ``ep_shard``, ``ep_replicate``.
        overwrite: replace what stands under ``out_dir``, in one step at the end.
        include, exclude: write only tensors whose names in the export match, do not match this regular expression
            from their first character on.
        dtype: "held": float32 weights give a float32 checkpoint. "source": they are rounded to the dtypes of the
            checkpoint, as for the master weights of one in bfloat16.
        export_layout: "source": quantised weights go back as codes and scales, copied from the checkpoint, if they were
            not changed. "auto": as values.
        originals: the checkpoint to copy those from, where ``source`` has only the values.
        gdn_dtype: of ``A_log`` and ``dt_bias``, held in float32: that of the source, or "upstream": float32.
        max_file_bytes: tensor bytes of a file, where headers are fresh.
        gather: the first rank writes everything; the others need not see ``out_dir``.
        resume: when the call is interrupted, loses a rank or is killed, what is written stays under
            ``out_dir.partial-…``, and goes on there when the same values are to be written again. What people should
            know of that is logged as ``rankslice``.
        family: of a state without a checkpoint: ``qwen3_5_moe``, ``qwen3_vl_moe``, ``qwen3_moe``, ``qwen3_next``.
        expert_layout, mtp_experts: how the files of such a state hold experts.
        side_files: of such a state: a folder with config.json, tokenizer, …
        partial: of such a state: it is a part of the model that config.json speaks of.
        progress: True for a bar, or a function (phase, bytes done, bytes in all).

    Raises:
        UsageError: the state does not fit the checkpoint, lacks tensors, or options contradict each other.
        VerifyError: copies differ, or what was written reads back differently.
        IoError: ``out_dir`` exists, or a file cannot be written or read.
        CommError: a rank does not answer, or torch cannot exchange tensors.
    """
    taken = take(
        state, source, mesh=mesh, process_group=process_group, dtype=dtype, family=family, expert_layout=expert_layout,
        mtp_experts=mtp_experts, side_files=side_files, partial=partial, max_file_bytes=max_file_bytes,
    )  # fmt: skip
    copied = opened_alike("originals", originals, taken.world)
    out = _steps.agreed(taken.world, lambda: os.fspath(out_dir))
    world = taken.world or _native.make_solo_communicator()
    with reporting(progress, taken.world, taken.is_first) as report:
        wrote = _native.to_hf(
            taken.state, out, world, overwrite, include or "", exclude or "", export_layout, copied,
            gdn_dtype, max_file_bytes, gather, resume, report, _threads.shared(taken.world),
        )  # fmt: skip
    headers = cast("Headers", wrote.headers)
    return ExportReport(headers, wrote.bytes_read, wrote.bytes_written, wrote.files, resumed(wrote))


def save_shards(
    state: State,
    out_dir: str | os.PathLike,
    *,
    source: Source | None = None,
    process_group: ProcessGroup | None = None,
    mesh: DeviceMesh | None = None,
    overwrite: bool = False,
    progress: Progress = None,
) -> None:
    """Writes each rank's local tensors, in the native form, to a file of its own, ``rank-00000.safetensors`` and so on:
    the fastest way to keep trained weights. ``open``, ``load`` and ``to_hf`` of the program take the folder.

    Collective over the ranks of the state, see ``to_hf``. A rank alone, which loaded with ``rank`` and ``world_size``
    and has no torch.distributed, adds its file to the folder. Needs the same memory as ``to_hf``.

    Raises:
        UsageError: the state does not fit the checkpoint, or lacks tensors.
        VerifyError: copies differ, or what was written reads back differently.
        IoError: ``out_dir`` exists, or a file cannot be written.
        CommError: a rank does not answer, or torch cannot exchange tensors.
    """
    taken = take(state, source, mesh=mesh, process_group=process_group)
    out = _steps.agreed(taken.world, lambda: os.fspath(out_dir))
    with reporting(progress, taken.world, taken.is_first) as report:
        _native.save_shards(taken.state, out, taken.world, overwrite, report, _threads.shared(taken.world))
