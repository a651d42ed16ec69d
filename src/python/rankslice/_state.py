"""State dicts: what a rank holds of a checkpoint, as torch sees it and as C++ does."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from rankslice import _names, _native, _steps, _tensors
from rankslice._device import Devices
from rankslice._exchanges import exchanged, needs_exchange
from rankslice._fitting import fitting, without_extra_state
from rankslice._names import Names
from rankslice._pieces import Piece, pieces_of, whole
from rankslice._wrappers import without_wrappers
from rankslice.errors import PlanError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from rankslice._filling import Filling
    from rankslice._mesh import MeshPlace

MAX_FILE_BYTES = 5_000_000_000
"""At which a Hugging Face checkpoint without a source starts a new file, as huggingface_hub does."""


class StateDict(dict[str, torch.Tensor]):
    """Name -> tensor: what this rank holds of a checkpoint. Free a tensor by deleting it. Copies and pickles,
    also those of torch.save, are OrderedDicts, as state dicts of modules are.

    Attributes:
        checkpoint: where it came from; of a selection only what was selected.
        place: the mesh, and where this rank stands in it.
        names: whose names these are: ``native`` or ``transformers``.
        bytes_owned: what this rank holds.
        bytes_read: what was read of the files for that.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        checkpoint: _native.Checkpoint,
        place: MeshPlace,
        filling: Filling,
    ) -> None:
        """Native tensors, and how they were filled."""
        super().__init__(tensors)
        self.names: Names = "native"
        self.came_from(checkpoint, place, filling)

    def came_from(self, checkpoint: _native.Checkpoint, place: MeshPlace, filling: Filling) -> None:
        """The tensors were filled from a checkpoint just now."""
        self.checkpoint, self.place = checkpoint, place
        self.bytes_owned, self.bytes_read = filling.bytes_owned, filling.bytes_read
        self._digests = filling.digests

    def __reduce__(self):
        return OrderedDict, (), None, None, iter(self.items())

    def renamed(self, names: Names) -> StateDict:
        """The same tensors, sharing their memory, under native names or those of transformers' modules, whose experts
        are views with axes 1 and 2 exchanged."""
        _names.require_known(names)
        ours = _names.table(self.checkpoint, self.names)
        theirs = {named.fqn: (name, named) for name, named in _names.table(self.checkpoint, names).items()}
        other = StateDict.__new__(StateDict)
        other.__dict__.update(self.__dict__, names=names)
        for name, tensor in self.items():
            new_name, named = theirs[ours[name].fqn]
            other[new_name] = _tensors.swapped(tensor) if named.swapped != ours[name].swapped else tensor
        return other


def adopt(
    state: Mapping[str, torch.Tensor] | nn.Module,
    source: _native.Checkpoint | None,
    place: MeshPlace,
    *,
    family: str | None = None,
    expert_layout: Literal["hub", "transformers"] = "hub",
    mtp_experts: Literal["grouped", "split"] | None = None,
    side_files: str | os.PathLike | None = None,
    partial: bool = False,
    max_file_bytes: int = MAX_FILE_BYTES,
    rounding: bool = False,
    world: _native.Communicator | None = None,
) -> _native.StateDict:
    """Any state dict as C++ sees it, over the same memory, on the host or another device. What is contiguous there in
    the native form and dtype is used as it is; the rest is brought into that a few MiB or one expert at a time, each
    time that C++ reads it. Names are native or transformers'. Plain tensors are whole, or this rank's part by the mesh;
    DTensors are what their placements say. Those that are divided along an axis that C++ does not divide are exchanged:
    each rank holds a copy of its part of all of them as long as what is returned.

    Collective over ``world`` where there is one; without it local, but for what is exchanged.

    Args:
        source: which checkpoint the tensors are of; None: that of a state that ``load`` returned, or else of none, and
            then ``family`` says of which family they are.
        side_files: without a source: a folder with config.json, tokenizer, …
        rounding: values that do not fit the dtype of the checkpoint are rounded to it; else they are refused.

    Raises:
        PlanError: a name, dtype or shape that the checkpoint has not; a part that none of its ranks can hold.
        CommError: tensors cannot be exchanged.
    """
    loaded = state if isinstance(state, StateDict) else None
    if loaded is not None and source is None:
        source = loaded.checkpoint

    def plan() -> list[_Planned]:
        tensors = without_wrappers(without_extra_state(state if isinstance(state, Mapping) else state.state_dict()))
        if source is not None:
            names = loaded.names if loaded is not None else _names.names_of(source, tensors)
            return _planned_of(source, tensors, names, place, rounding)
        if family is None:
            raise UsageError("a state dict without a checkpoint: give source, or the family that its tensors are of")
        return _planned_without_checkpoint(family, tensors)

    def make() -> _native.StateDict:
        devices = Devices()
        locals_ = {each.native.fqn: each.local(devices) for each in planned}
        if source is not None:
            return _native.make_state_dict(source, locals_, place.mesh, place.rank)
        assert family is not None
        folder = os.fspath(side_files or "")
        return _native.make_fresh_state_dict(
            locals_, place.mesh, place.rank, family, expert_layout, mtp_experts, folder, partial, max_file_bytes
        )

    # What can fail on one rank alone is agreed on before and after what the ranks exchange, never within it.
    planned = _steps.agreed(world, plan)
    divided = exchanged({each.name: each.tensor for each in planned if each.piece is None}, world)
    planned = [each if each.piece is not None else each.now_divided(divided[each.name]) for each in planned]
    adopted = _steps.agreed(world, make)
    if loaded is not None and source is loaded.checkpoint:
        adopted.read = loaded._digests
    return adopted


class Native(NamedTuple):
    """What the native tensor is: all of it."""

    fqn: str
    dtype: str
    shape: list[int]
    stacked: bool

    def divides(self, piece: Piece) -> bool:
        """Whether C++ takes such a piece: of stacked experts a box of experts and rows, else some of axis 0."""
        return piece == self.read_for(piece)._replace(local=piece.local)

    def read_for(self, piece: Piece) -> Piece:
        """The smallest piece around this one that C++ takes."""
        divided = 2 if self.stacked else 1
        nowhere = (0,) * len(self.shape)
        return Piece(
            piece.offsets[:divided] + nowhere[divided:], piece.shape[:divided] + tuple(self.shape[divided:]), nowhere
        )

    def in_elements(self, piece: Piece) -> Piece:
        """A piece of the tensor as torch has it: of dtypes of less than a byte, all of it."""
        return whole(self.shape) if list(piece.shape) == _tensors.torch_shape(self.dtype, self.shape) else piece

    def require_shape(self, name: str, found: Sequence[int], is_swapped: bool) -> None:
        """The shape is this tensor's, as torch has it. Raises PlanError."""
        expected = _tensors.torch_shape(self.dtype, self.shape)
        if is_swapped:
            expected[1], expected[2] = expected[2], expected[1]
        if list(found) != expected:
            raise PlanError(f"{name}: expected the shape {expected}, found {list(found)}", tensor=name)


def natives(checkpoint: _native.Checkpoint) -> dict[str, Native]:
    return {p.fqn: Native(p.fqn, p.dtype, p.shape, p.stacked_experts) for p in checkpoint.parameters}


def parts_of(checkpoint: _native.Checkpoint, place: MeshPlace) -> dict[str, Piece]:
    """What this rank has of every native tensor by the mesh."""
    held = _native.held(checkpoint, place.mesh, place.rank)
    return {
        parameter.fqn: Piece(tuple(offsets), tuple(shape), (0,) * len(shape))
        for parameter, (offsets, shape) in zip(checkpoint.parameters, held)
    }


class _Planned(NamedTuple):
    """A tensor, and what it is a part of.

    Attributes:
        swapped: whether its axes 1 and 2 are exchanged against the native form.
        piece: this rank's part, in the native order of axes; None: known once ranks have exchanged the tensor.
    """

    name: str
    tensor: torch.Tensor
    swapped: bool
    native: Native
    piece: Piece | None

    def now_divided(self, tensor: torch.Tensor) -> _Planned:
        """The same, of a copy that is divided as C++ divides it."""
        return self._replace(tensor=tensor, piece=_divided_piece(self.name, tensor, self.swapped, self.native))

    def local(self, devices: Devices) -> _native.LocalTensor:
        """Its values as a part of the native one."""
        assert self.piece is not None
        local = _in_native_order(_tensors.local_of(self.tensor.detach()), self.swapped)
        return _tensors.over(self.native, self.piece.offsets, self.piece.shape, local, devices)


def _planned_of(
    source: _native.Checkpoint, tensors: Mapping[str, torch.Tensor], names: Names, place: MeshPlace, rounding: bool
) -> list[_Planned]:
    known, table, parts = natives(source), _names.table(source, names), parts_of(source, place)
    planned = []
    for name, tensor in fitting(tensors, source, table, known, rounding).items():
        fqn = table[name].fqn
        planned.append(_planned(name, tensor, table[name].swapped, known[fqn], parts[fqn]))
    return planned


def _planned_without_checkpoint(family: str, tensors: Mapping[str, torch.Tensor]) -> list[_Planned]:
    planned = []
    for name, named in _names.without_checkpoint(family, tensors).items():
        tensor = tensors[name]
        shape = list(tensor.shape)
        if named.swapped and len(shape) > 2:
            shape[1], shape[2] = shape[2], shape[1]
        native = Native(named.fqn, _tensors.dtype_name(tensor.dtype), shape, named.stacked)
        planned.append(_planned(name, tensor, named.swapped, native, whole(shape)))
    return planned


def _planned(name: str, tensor: torch.Tensor, is_swapped: bool, native: Native, part: Piece) -> _Planned:
    """`part`: what plain tensors may be, unless whole. Raises PlanError for all that is wrong with a tensor."""
    if not _tensors.is_dtensor(tensor):
        piece: Piece | None = plain_piece(name, _in_native_order(tensor, is_swapped), native, part)
    else:
        native.require_shape(name, tensor.shape, is_swapped)
        axes = {0} if not native.stacked else {0, 2} if is_swapped else {0, 1}
        if needs_exchange(tensor, axes):
            pieces_of(name, tensor)  # which says what is wrong with it
            piece = None
        else:
            piece = _divided_piece(name, tensor, is_swapped, native)
    return _Planned(name, tensor, is_swapped, native, piece)


def _in_native_order(tensor: torch.Tensor, is_swapped: bool) -> torch.Tensor:
    return tensor.transpose(1, 2) if is_swapped and tensor.ndim > 2 else tensor


def plain_piece(name: str, local: torch.Tensor, native: Native, part: Piece) -> Piece:
    """What a plain tensor is, its axes in the native order: all, or `part`."""
    for piece in (whole(native.shape), part):
        if list(local.shape) == _tensors.torch_shape(native.dtype, piece.shape):
            return piece
    raise PlanError(
        f"{name}: expected {native.shape} in the native order of axes, or this rank's part of it {list(part.shape)}, "
        f"found {list(local.shape)}",
        tensor=name,
    )


def _divided_piece(name: str, tensor: torch.Tensor, is_swapped: bool, native: Native) -> Piece:
    """What this rank has of a DTensor that is divided as C++ divides it, in the native order of axes."""
    pieces = pieces_of(name, tensor)
    if not pieces:
        return whole((0, *native.shape[1:]))
    if len(pieces) > 1:
        raise PlanError(f"{name}: {tensor.placements} leave this rank parts that are not neighbours", tensor=name)
    return pieces[0].swapped() if is_swapped else native.in_elements(pieces[0])
