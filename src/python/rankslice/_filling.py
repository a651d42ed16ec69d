"""Loading a checkpoint into tensors that are there already: a module's parameters, or those of a state dict."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Literal, NamedTuple, Union, get_args

import torch
from torch import nn

from rankslice import _buffers, _mesh, _names, _native, _progress, _steps, _tensors, _threads, _wrappers
from rankslice._checkpoint import Source, opened
from rankslice._device import Devices
from rankslice._pieces import Piece, pieces_of
from rankslice._state import Native, StateDict, natives, parts_of, plain_piece
from rankslice._verifying import Level, raise_if_bad, require_level
from rankslice.errors import PlanError, UsageError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

    from rankslice._mesh import MeshPlace
    from rankslice._names import Names

Dense = Literal["auto", "each-rank", "once"]
"""Who reads the tensors that every rank has whole."""
Io = Literal["auto", "pread", "io_uring", "direct"]
Cache = Literal["keep", "drop"]

Target = Union[nn.Module, MutableMapping[str, torch.Tensor]]

_AT_A_TIME = 256 << 20
"""Bytes of host memory for tensors that C++ cannot fill where they are; more where one expert, or a tensor that is not
experts, has more."""

_LISTED = 20


class Filled(NamedTuple):
    """What ``load_into`` did.

    Attributes:
        missing_keys: names that the checkpoint has not, but for those of LoRA adapters; their values are as they were.
        unexpected_keys: names of the checkpoint that were not asked for.
        on_meta: what is on the meta device still: missing ones, and buffers that are in no state dict.
        bytes_owned: what this rank has of the checkpoint now, in the dtypes of the checkpoint as it was opened.
        bytes_read: what this rank read of the files.
    """

    missing_keys: list[str]
    unexpected_keys: list[str]
    on_meta: list[str]
    bytes_owned: int
    bytes_read: int


def load_into(
    target: Target,
    source: Source,
    *,
    mesh: DeviceMesh | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    ep: int | None = None,
    ep_shard: int | None = None,
    process_group: ProcessGroup | None = None,
    device: torch.device | str | None = None,
    names: Names | None = None,
    include: str | None = None,
    exclude: str | None = None,
    strict: bool = True,
    verify: Level = "full",
    dense: Dense = "auto",
    io: Io = "auto",
    cache: Cache = "keep",
    threads: int | None = None,
    progress: _progress.Progress = None,
) -> Filled:
    """Fills the parameters and buffers of a module, or the tensors of a state dict, where they are.

    A DTensor gets what its own placements give this rank, whatever mesh it is on (FSDP2, HSDP, tensor and expert
    parallel); a plain tensor all of it, or the rank's part by the arguments here, whichever fits its shape. Of the
    files each rank reads only what it holds: ranges of axis 0, of experts also of their rows. Along other axes all that
    lies between is read too.

    Memory is filled directly where it is contiguous in the native order of axes and in the dtype of the checkpoint. All
    else (experts in the order of transformers, dense tensors divided along other axes, other dtypes) goes through
    256 MiB of host memory, or that of one expert or dense tensor, where it needs more.

    What is on the meta device becomes real, without a second copy: parameters keep ``requires_grad``, ties, placements
    and attributes, but those of a subclass become ``nn.Parameter``; a model of transformers computes its buffers that
    no checkpoint has. Modules may have been through ``fully_shard`` before, and be wrapped by peft, torch.compile or
    activation checkpointing; tensors of LoRA adapters are left alone. Make optimisers after that.

    Collective over the ranks of ``mesh``, ``process_group`` or torch.distributed; each rank alone with ``rank`` and
    ``world_size``. When it fails, it fails on all ranks alike, and values are undefined.

    Args:
        target: names are native or those of transformers' modules.
        source: a folder of safetensors files, one that ``save_shards`` wrote, or what ``open`` returned.
        mesh, rank, world_size, ep, ep_shard: as for ``load``; what plain tensors hold a part of.
        device: where tensors on the meta device become real; None: on that of their DeviceMesh, or the host.
        names: which names they are; None: as it looks.
        include, exclude: as for ``load``.
        strict: names that one side has and the other not are an error.
        verify: ``full``: each rank proves by itself that its memory has what it read, and that this is what the
            checkpoint recorded of what it has whole; where values are turned or converted by torch, of the host memory
            that they go through. ``reread`` also reads it all again; ``coverage`` and ``off`` prove nothing.
        dense: as for ``load``; of tensors that every rank has whole, and that are filled directly.
        io, cache, threads: as for ``load``.
        progress: as for ``load``.

    Raises:
        UsageError: names that one side has not (all are listed), a shape that is not the checkpoint's, placements with
            partial sums, tied tensors that are not the same in the checkpoint; and as ``load``.
        VerifyError: something differs.
        IoError, FormatError, CommError: as ``load``.
    """
    require_level(verify)
    require_dense(dense)
    if device is not None:
        device = require_real(torch.device(device))
    if isinstance(target, StateDict) and (mesh, rank, world_size, ep, ep_shard) == (None,) * 5:
        place = target.place
    else:
        place = _mesh.place(mesh, rank, world_size, ep, ep_shard, process_group)
    world = _steps.world_of(place, process_group)
    tensors = _steps.agreed(world, lambda: _tensors_of(target))
    dtype = None if isinstance(source, _native.Checkpoint) else _widened(tensors)
    checkpoint = opened(source, world, dtype=dtype, include=include, exclude=exclude)
    filling = _steps.agreed(
        world, lambda: Filling(checkpoint, place, _wrappers.without_wrappers(tensors), names, strict, device)
    )
    with _progress.reporting(progress, world, place.rank == 0) as report:
        filling.fill(world, verify, dense, (io, cache, _threads.decided(threads, world)), report)

    def give() -> Filled:
        made_real = filling.made_real
        _give(target, {name: made_real[bare] for name in tensors if (bare := _wrappers.bare(name)) in made_real})
        if isinstance(target, StateDict):
            target.came_from(checkpoint, place, filling)
        return filling.result(target)

    return _steps.agreed(world, give)


def require_dense(dense: Dense) -> None:
    if dense not in get_args(Dense):
        raise UsageError(f"dense: expected one of {', '.join(get_args(Dense))}, got {dense!r}")


def require_real(device: torch.device) -> torch.device:
    if device.type == "meta":
        raise UsageError("device: values cannot be loaded onto the meta device")
    return device


def _give(target: Target, made_real: dict[str, torch.Tensor]) -> None:
    """What has memory that had none before, by the target's names."""
    if isinstance(target, nn.Module):
        target.load_state_dict(made_real, strict=False, assign=True)
        _buffers.compute(target)
    else:
        target.update(made_real)


def _tensors_of(target: Target) -> dict[str, torch.Tensor]:
    """By the names of a module's state dict: the parameters themselves, so that ties show."""
    found = target.state_dict(keep_vars=True) if isinstance(target, nn.Module) else target
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    return {name: tensor for name, tensor in tensors.items() if "_extra_state" not in name}


def _widened(tensors: dict[str, torch.Tensor]) -> torch.dtype | None:
    """float32, where most elements are to be that and none more: C++ then widens on the way, exactly. Values that are
    to be narrower pass through torch, which knows what each is to be."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    most = max(counts, key=lambda dtype: counts[dtype], default=None)
    return torch.float32 if most == torch.float32 and torch.float64 not in counts else None


class _Box(NamedTuple):
    """Values on their way through other memory: a box of a native tensor, and where it goes."""

    native: Native
    piece: Piece
    to: torch.Tensor
    """With its axes in the native order."""
    tied: tuple[str, str] | None = None
    """Names of one tensor of the target, where the first one's values are there already, and these must be the same."""

    @property
    def bytes(self) -> int:
        return self.to.numel() * _tensors.torch_dtype(self.native.dtype).itemsize


class Filling:
    """What goes where: made on every rank by itself, then carried out by all together.

    Attributes:
        made_real: by name, what has memory that had none before.
        digests: of what was read.
    """

    def __init__(
        self,
        checkpoint: _native.Checkpoint,
        place: MeshPlace,
        tensors: dict[str, torch.Tensor],
        names: Names | None = None,
        strict: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        self._checkpoint, self._place, self._device, self._devices = checkpoint, place, device, Devices()
        self._table = _names.table(checkpoint, names or _names.names_of(checkpoint, tensors))
        self._natives, self._parts = natives(checkpoint), parts_of(checkpoint, place)
        self._tensors = tensors
        self.made_real: dict[str, torch.Tensor] = {}
        self._boxes: list[_Box] = []
        self._direct: dict[str, _native.LocalTensor] = {}
        self._compare_names(strict)
        self._plan()

    def _compare_names(self, strict: bool) -> None:
        tied = {id(tensor) for name, tensor in self._tensors.items() if name in self._table}
        self.missing = [
            name
            for name, tensor in self._tensors.items()
            if name not in self._table and id(tensor) not in tied and not _wrappers.is_adapter(name)
        ]
        self.unexpected = [name for name in self._table if name not in self._tensors]
        if strict and (self.missing or self.unexpected):
            raise PlanError(
                f"{self._checkpoint.path}: has not {_listed(self.missing)}; was not asked for "
                f"{_listed(self.unexpected)}: leave tensors out by exclude=, or take what there is by strict=False",
                tensor=(self.missing or self.unexpected)[0],
            )

    def _plan(self) -> None:
        real: dict[int, torch.Tensor] = {}  # what a tied tensor has become
        first: dict[int, str] = {}
        for name, tensor in self._tensors.items():
            if name not in self._table:
                continue
            if id(tensor) not in real:
                real[id(tensor)] = _made_real(tensor, self._device) if tensor.is_meta else tensor
                first[id(tensor)] = name
                self._add(name, real[id(tensor)])
            else:
                self._add(name, real[id(tensor)], (first[id(tensor)], name))
        for name, tensor in self._tensors.items():
            if tensor.is_meta and id(tensor) in real:
                self.made_real[name] = real[id(tensor)]

    def _add(self, name: str, tensor: torch.Tensor, tied: tuple[str, str] | None = None) -> None:
        named = self._table[name]
        native, local = self._natives[named.fqn], _local_of(tensor)
        pieces = _pieces(name, tensor, named.swapped, native, self._parts[named.fqn])
        if named.swapped:
            local = local.transpose(1, 2)
        if tied is None and len(pieces) == 1 and native.divides(pieces[0]) and _fills_directly(local, native):
            offsets, shape, _ = pieces[0]
            self._direct[native.fqn] = _tensors.over(native, offsets, shape, local, self._devices)
        else:
            self._boxes += [box for piece in pieces for box in _divided(_Box(native, piece, piece.of(local), tied))]

    def fill(
        self,
        world: _native.Communicator | None,
        verify: Level,
        dense: Dense,
        reading: tuple[Io, Cache, int],
        report: _progress.Report | None,
        prove: bool = True,
    ) -> None:
        """Collective. Without `prove` who calls proves what was filled directly, all ranks together."""
        state = _steps.agreed(world, lambda: self._state(self._direct))
        self.bytes_owned = state.bytes_owned
        more = _followed_by(report, sum(box.bytes for box in self._boxes))
        self.bytes_read, received = _native.fill(state, world, verify, dense, *reading, more)
        self.digests = state.read
        if prove:
            _steps.agreed(world, lambda: self._prove(state, verify, reading))
        _steps.agreed(world, lambda: self._fill_boxes(world, verify, reading, received, report))

    @torch.no_grad()
    def _fill_boxes(
        self,
        world: _native.Communicator | None,
        verify: Level,
        reading: tuple[Io, Cache, int],
        received: int,
        report: _progress.Report | None,
    ) -> None:
        done = self.bytes_read + received
        total = done + sum(box.bytes for box in self._boxes)
        for box in self._boxes:
            self._fill_box(box, verify, reading)
            done += box.bytes
            if report is not None:
                report("load", done, total)
            if world is not None:
                _native.still_alive(world)

    def _fill_box(self, box: _Box, verify: Level, reading: tuple[Io, Cache, int]) -> None:
        read = box.native.read_for(box.piece)
        values = _tensors.empty(box.native.dtype, read.shape, torch.device("cpu"))
        local = _tensors.over(box.native, read.offsets, read.shape, values, self._devices)
        state = self._state({box.native.fqn: local})
        self.bytes_read += _native.fill(state, None, verify, "each-rank", *reading, None)[0]
        self._prove(state, verify, reading)
        self.digests.add(state.read)
        found = _cut(values, read, box.piece)
        if box.tied is None:
            self.bytes_owned += box.bytes
            box.to.copy_(found)
        elif not _is_same(box.to, found):
            raise PlanError(
                f"{box.tied[0]} and {box.tied[1]}: are one tensor here, and have different values in "
                f"{self._checkpoint.path}: leave one out by exclude= and strict=False, or untie them",
                tensor=box.tied[1],
            )

    def _prove(self, state: _native.StateDict, verify: Level, reading: tuple[Io, Cache, int]) -> None:
        """Alone, of what was filled just now."""
        raise_if_bad(_native.verify(state, None, verify, None, reading[2], None))

    def _state(self, tensors: dict[str, _native.LocalTensor]) -> _native.StateDict:
        return _native.make_state_dict(self._checkpoint, tensors, self._place.mesh, self._place.rank)

    def result(self, target: Target) -> Filled:
        found = _tensors_of(target)
        if isinstance(target, nn.Module):
            found |= dict(target.named_buffers())
        on_meta = [name for name, tensor in found.items() if tensor.is_meta]
        return Filled(self.missing, self.unexpected, on_meta, self.bytes_owned, self.bytes_read)


def _followed_by(report: _progress.Report | None, more: int) -> _progress.Report | None:
    """The same report of a part of the work, behind which there are more bytes to come."""
    return None if report is None else lambda phase, done, total: report(phase, done, total + more)


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _local_of(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if _tensors.is_dtensor(tensor) else tensor


def _pieces(name: str, tensor: torch.Tensor, is_swapped: bool, native: Native, part: Piece) -> list[Piece]:
    """What this rank has of a native tensor, axes in the native order; nothing of an empty one."""
    local = _local_of(tensor)
    if local.numel() == 0 and torch.Size(native.shape).numel() > 0:
        return []
    if not _tensors.is_dtensor(tensor):
        return [plain_piece(name, local.transpose(1, 2) if is_swapped else local, native, part)]
    native.require_shape(name, tensor.shape, is_swapped)
    pieces = pieces_of(name, tensor)
    return [piece.swapped() for piece in pieces] if is_swapped else [native.in_elements(piece) for piece in pieces]


def _fills_directly(local: torch.Tensor, native: Native) -> bool:
    return local.is_contiguous() and local.dtype == _tensors.torch_dtype(native.dtype)


def _divided(box: _Box) -> Iterator[_Box]:
    """Experts, and what is only compared, a few rows of axis 0 at a time, so that they need little memory."""
    if not box.piece.shape or not (box.native.stacked or box.tied):
        yield box
        return
    elements = torch.Size(box.native.read_for(box.piece).shape[1:]).numel()
    step = max(1, _AT_A_TIME // max(1, elements * _tensors.torch_dtype(box.native.dtype).itemsize))
    for first in range(0, box.piece.shape[0], step):
        count = min(step, box.piece.shape[0] - first)
        offsets = (box.piece.offsets[0] + first, *box.piece.offsets[1:])
        some = Piece(offsets, (count, *box.piece.shape[1:]), (0,) * len(offsets))
        yield box._replace(piece=some, to=box.to.narrow(0, first, count))


def _cut(values: torch.Tensor, read: Piece, wanted: Piece) -> torch.Tensor:
    begin = tuple(want - have for want, have in zip(wanted.offsets, read.offsets))
    return Piece(wanted.offsets, wanted.shape, begin).of(values)


def _is_same(held: torch.Tensor, found: torch.Tensor) -> bool:
    """Bit for bit, in the dtype that is held."""
    as_held = found.to(held.device, held.dtype)
    return torch.equal(*(values.flatten().view(torch.uint8) for values in (held, as_held)))


def _made_real(tensor: torch.Tensor, device: torch.device | str | None) -> torch.Tensor:
    """A tensor like one on the meta device, with memory: a parameter where that is one, a DTensor where that is one."""
    local = _local_of(tensor)
    if device is None:
        device = tensor.device_mesh.device_type if _tensors.is_dtensor(tensor) else "cpu"
    order = sorted(range(local.ndim), key=lambda axis: (-local.stride(axis), axis))  # as it lies in memory
    shape = [local.size(axis) for axis in order]
    memory = _tensors.empty(_tensors.dtype_name(local.dtype), shape, torch.device(device))
    real = memory.permute([order.index(axis) for axis in range(local.ndim)])
    if _tensors.is_dtensor(tensor):
        real = _tensors.as_dtensor(real, tensor.shape, tensor.device_mesh, tensor.placements, tensor.stride())
    if isinstance(tensor, nn.Parameter):
        real = nn.Parameter(real, requires_grad=tensor.requires_grad)
    for name, value in vars(tensor).items():  # what trainers mark parameters with
        vars(real).setdefault(name, value)
    return real.requires_grad_(tensor.requires_grad)
