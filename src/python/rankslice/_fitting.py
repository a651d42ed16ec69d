"""What of a state dict belongs to a checkpoint, in the dtypes that it has there."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

import torch

from rankslice import _tensors, _wrappers
from rankslice.errors import PlanError

if TYPE_CHECKING:
    from rankslice import _native
    from rankslice._names import Named
    from rankslice._state import Native


_AT_A_TIME = 1 << 20
"""Elements."""


def without_extra_state(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rule 25: what modules keep beside their tensors is none, and not always a tensor."""
    return {name: tensor for name, tensor in tensors.items() if "_extra_state" not in name}


def fitting(
    tensors: Mapping[str, torch.Tensor],
    source: _native.Checkpoint,
    table: Mapping[str, Named],
    known: Mapping[str, Native],
    rounding: bool = False,
) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint has, whose values fit its dtypes. Left out are other names of tied tensors. Local.

    Args:
        table: what the names stand for.
        known: the checkpoint's tensors, by FQN.
        rounding: of values that do not fit the dtype of the checkpoint; else they are refused.

    Raises:
        PlanError: a tensor that the checkpoint has not, or has in another shape, or whose values do not fit.
    """
    memory = {_memory_of(tensor) for name, tensor in tensors.items() if name in table}
    fit = {}
    for name, tensor in tensors.items():
        if name in table:
            native = known[table[name].fqn]
            if _tensors.is_dtensor(tensor):  # plain ones may be parts
                native.require_shape(name, tensor.shape, table[name].swapped)
            _require_fit(name, tensor, _tensors.torch_dtype(native.dtype), rounding)
            fit[name] = tensor
        elif _wrappers.is_adapter(name):
            raise PlanError(
                f"{name}: is of an adapter, without which the model is another: merge it into the model first (peft: "
                "merge_and_unload), or leave it out and save it by itself",
                tensor=name,
            )
        elif not _is_tied(tensor, memory):
            raise PlanError(f"{name}: {source.path} has no such tensor: leave it out", tensor=name)
    return fit


def _memory_of(tensor: torch.Tensor) -> tuple[int, torch.Size, torch.dtype]:
    return _tensors.local_of(tensor).data_ptr(), tensor.shape, tensor.dtype


def _is_tied(tensor: torch.Tensor, memory: Set[tuple[int, torch.Size, torch.dtype]]) -> bool:
    """Whether it is one of those by another name. Where a rank has nothing of a DTensor, those that have some say."""
    if _tensors.local_of(tensor).numel() == 0:
        return tensor.numel() > 0
    return _memory_of(tensor) in memory


def _require_fit(name: str, tensor: torch.Tensor, dtype: torch.dtype, rounding: bool) -> None:
    if tensor.dtype == dtype:
        return
    both_floating = tensor.dtype.is_floating_point and dtype.is_floating_point
    if both_floating and (rounding or _fits(_tensors.local_of(tensor.detach()), dtype)):
        return
    found, wanted = (str(of).removeprefix("torch.") for of in (tensor.dtype, dtype))
    raise PlanError(
        f"{name}: is held in {found}, and the checkpoint has it in {wanted}, which its values do not fit: change its "
        f"dtype, round all with dtype='source', or open the checkpoint with dtype={found} for an export in that",
        tensor=name,
    )


def _fits(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether no value changes; NaNs are the same. Looks at some MiB or one expert at a time."""
    if tensor.ndim == 0:
        return _all_fit(tensor, dtype)
    rows = max(1, _AT_A_TIME * len(tensor) // max(1, tensor.numel()))
    return all(_all_fit(some, dtype) for some in tensor.split(rows))


def _all_fit(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    again = tensor.to(dtype).to(tensor.dtype)
    return bool(((again == tensor) | (again.isnan() & tensor.isnan())).all())
