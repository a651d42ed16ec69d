"""Tensors of torch over memory that C++ fills: dtypes, allocation, DTensors."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch

from rankslice import _native
from rankslice.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Placement

    from rankslice._device import Devices
    from rankslice._state import Native

HugePages = Literal["auto", "on", "off"]
"""On which pages of host memory tensors stand."""

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_SUB_BYTE_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of torch that holds a dtype of safetensors; that of bytes for those of less than a byte."""
    return torch.uint8 if name in _SUB_BYTE_BITS else _DTYPES[name]


def dtype_name(dtype: torch.dtype | str) -> str:
    """The name in safetensors of a dtype, or of its name in torch ("bfloat16").

    Raises:
        UsageError: for one that safetensors files cannot have.
    """
    if isinstance(dtype, str):
        named = getattr(torch, dtype.removeprefix("torch."), None)
        dtype = named if isinstance(named, torch.dtype) else _DTYPES.get(dtype, dtype)
    if dtype not in _NAMES:
        raise UsageError(f"there is no dtype {dtype} in safetensors files")
    return _NAMES[dtype]


def torch_shape(name: str, shape: Sequence[int]) -> list[int]:
    """The shape in torch. Of dtypes of less than a byte it is in bytes, along the last axis, or flat where an axis does
    not end with one."""
    if name not in _SUB_BYTE_BITS or not shape:
        return list(shape)
    bits = _SUB_BYTE_BITS[name]
    if shape[-1] * bits % 8 == 0:
        return [*shape[:-1], shape[-1] * bits // 8]
    return [torch.Size(shape).numel() * bits // 8]


def empty(name: str, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Memory for a local tensor of its own, not zeroed.

    Raises:
        DeviceError: there is no such device, or it has no memory left.
    """
    return side_by_side([(name, shape)], device)[0]


def side_by_side(
    wanted: Sequence[tuple[str, Sequence[int]]], device: torch.device, hugepages: HugePages = "auto"
) -> list[torch.Tensor]:
    """The same for many, dtypes and shapes: on the host C++'s memory, on huge pages that neighbours share, of which
    each tensor owns its part.

    Raises:
        DeviceError: there is no such device, or it has no memory left.
        UsageError: there are no huge pages, though asked for; those of a device are its own business.
    """
    if hugepages == "on" and device.type != "cpu":
        raise UsageError(f"hugepages: are of host memory, and the tensors are to be on {device}")
    dtypes = [torch_dtype(name) for name, _ in wanted]
    shapes = [torch_shape(name, shape) for name, shape in wanted]
    if device.type != "cpu":
        return [_on_device(shape, dtype, device) for shape, dtype in zip(shapes, dtypes)]
    sizes = [torch.Size(shape).numel() * dtype.itemsize for shape, dtype in zip(shapes, dtypes)]
    memory = _native.allocate(sizes, hugepages)
    return [
        torch.from_dlpack(part).view(dtype).view(shape) if size else torch.empty(shape, dtype=dtype)
        for part, size, dtype, shape in zip(memory, sizes, dtypes, shapes)
    ]


def _on_device(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without that device
        raise DeviceError(f"{device}: {error}") from error


def over(
    native: Native, offsets: Sequence[int], local_shape: Sequence[int], tensor: torch.Tensor, devices: Devices
) -> _native.LocalTensor:
    """A tensor's values as C++ sees them: the part of a native tensor at `offsets`."""
    dtype = torch_dtype(native.dtype)
    address, device = devices.place(tensor, dtype)
    return _native.local_tensor(
        native.dtype,
        native.shape,
        list(offsets),
        list(local_shape),
        address,
        tensor.numel() * dtype.itemsize,
        tensor,
        device,
    )


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def as_dtensor(
    local: torch.Tensor,
    shape: Sequence[int],
    device_mesh: DeviceMesh,
    placements: Sequence[Placement],
    strides: Sequence[int] | None = None,
) -> DTensor:
    """A local tensor as the DTensor that it is a part of. Says its shape, as torch's guess is wrong where parts are
    uneven (rule 12), and so communicates nothing."""
    from torch.distributed.tensor import DTensor

    strides = contiguous_strides(shape) if strides is None else tuple(strides)
    return DTensor.from_local(local, device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides)


def is_dtensor(tensor: torch.Tensor) -> bool:
    """Without importing what a program without DTensors never needs."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank has of a tensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def swapped(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory with axes 1 and 2 exchanged: native experts as transformers has them, and back (rule 46)."""
    if not is_dtensor(tensor):
        return tensor.transpose(1, 2)
    from torch.distributed.tensor import Shard

    exchanged = {1: Shard(2), 2: Shard(1)}
    placements = [exchanged.get(getattr(p, "dim", 0), p) for p in tensor.placements]
    shape, strides = ([axes[0], axes[2], axes[1], *axes[3:]] for axes in (tensor.shape, tensor.stride()))
    return as_dtensor(tensor.to_local().transpose(1, 2), shape, tensor.device_mesh, placements, strides)
