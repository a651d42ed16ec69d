"""Tensors that C++ cannot use where they are, as it uses them: by calling what is here. Those on a device of torch, and
those that lie in another order or are of another dtype than it wants."""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterator
from typing import Any

import torch

from rankslice import _native

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

HOST = {"cpu"}
"""Whose memory C++ uses by itself."""

_FIRST_OF_VIEWS = 1 << 62
"""Behind every address there is."""


class Devices:
    """The devices that the tensors of one call are on."""

    def __init__(self) -> None:
        self._memories: dict[torch.device, tuple[_Memory, _native.Device]] = {}

    def place(self, tensor: torch.Tensor, dtype: torch.dtype) -> tuple[int, _native.Device | None]:
        """Where C++ finds the values of a tensor, one after the other in the order of its axes: an address, and whose
        it is; None: the host's. Contiguous tensors of that dtype may also be written there."""
        as_it_is = tensor.is_contiguous() and tensor.dtype == dtype
        if tensor.numel() == 0 or (as_it_is and tensor.device.type in HOST):
            return tensor.data_ptr(), None
        if tensor.device not in self._memories:
            memory = _Memory(tensor.device)
            self._memories[tensor.device] = memory, _native.Device(memory)
        memory, device = self._memories[tensor.device]
        return memory.know(tensor) if as_it_is else memory.know_view(tensor, dtype), device


class _Memory:
    """What `_native.Device` calls, on one thread. Work is done on the stream that was current when it was made, so
    behind all that the caller began before."""

    def __init__(self, device: torch.device) -> None:
        self.kind, self.index, self.name = device.type, device.index or 0, str(device)
        self._device = device
        self._is_host = device.type == "cpu"
        self._stream: Any = _NoStream() if self._is_host else torch.accelerator.current_stream(device)
        self._blocks = _Block(), _Block()
        self._addresses: list[int] = []
        self._tensors: dict[int, tuple[torch.Tensor, torch.dtype]] = {}
        self._next_view = _FIRST_OF_VIEWS
        self._held = self._peak = 0

    def know(self, tensor: torch.Tensor) -> int:
        """Memory of the whole storage, as tensors may share one."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._tensors:
            everything = torch.empty(0, dtype=torch.uint8, device=self._device).set_(storage)
            self._keep(storage.data_ptr(), everything, torch.uint8)
        return tensor.data_ptr()

    def know_view(self, tensor: torch.Tensor, dtype: torch.dtype) -> int:
        """Values that are nowhere as C++ wants them until it downloads some: their address is only a name."""
        first = self._next_view
        self._keep(first, tensor, dtype)
        self._next_view += tensor.numel() * dtype.itemsize
        return first

    def allocate(self, count: int) -> int:
        self._held += count
        self._peak = max(self._peak, self._held)
        with self._stream:
            return self.know(torch.empty(max(count, 1), dtype=torch.uint8, device=self._device))

    def release(self, first: int, count: int) -> None:
        self._held -= count
        del self._tensors[first]
        self._addresses.remove(first)

    def peak_bytes(self) -> int:
        return self._peak if self._is_host else torch.get_device_module(self._device).max_memory_allocated(self._device)

    def staging(self, count: int) -> int:
        self._blocks = self._blocks[1], self._blocks[0]
        return self._blocks[0].of(count, pinned=not self._is_host)

    def upload(self, begin: int, count: int, to: int) -> None:
        with self._stream:
            self._bytes(to, count).copy_(self._blocks[0].bytes[begin : begin + count], non_blocking=True)
            self._blocks[0].uploaded = self._stream.record_event()

    def upload_transposed(
        self, begin: int, rows: int, columns: int, stride: int, element_bytes: int, to: int, to_stride: int
    ) -> None:
        """Strides in elements. The bytes go up as they are, and are turned there."""
        dtype, block = _INTEGERS[element_bytes], self._blocks[0]
        count = ((rows - 1) * stride + columns) * element_bytes
        target = self._bytes(to, ((columns - 1) * to_stride + rows) * element_bytes).view(dtype)
        with self._stream:
            staged = block.bytes[begin : begin + count].to(self._device, non_blocking=True)
            block.uploaded = self._stream.record_event()
            _matrix(target, columns, rows, to_stride).copy_(_matrix(staged.view(dtype), rows, columns, stride).t())

    def download(self, address: int, to: memoryview) -> None:
        tensor, dtype, begin = self._at(address)
        values = torch.frombuffer(to, dtype=torch.uint8).view(dtype)
        with self._stream:
            for run in _runs(tensor, begin, begin + values.numel()):
                some, values = values[: run.numel()], values[run.numel() :]
                some.view(run.shape).copy_(run)

    def finish(self) -> None:
        self._stream.synchronize()

    def _keep(self, first: int, tensor: torch.Tensor, dtype: torch.dtype) -> None:
        insort(self._addresses, first)
        self._tensors[first] = tensor, dtype

    def _at(self, address: int) -> tuple[torch.Tensor, torch.dtype, int]:
        """A tensor, the dtype in which it is asked for, and which of its elements is there."""
        first = self._addresses[bisect_right(self._addresses, address) - 1]
        tensor, dtype = self._tensors[first]
        return tensor, dtype, (address - first) // dtype.itemsize

    def _bytes(self, address: int, count: int) -> torch.Tensor:
        everything, _, begin = self._at(address)
        return everything[begin : begin + count]


class _Block:
    """Staging memory, and the end of the last upload from it."""

    def __init__(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)
        self.uploaded: Any = None

    def of(self, count: int, pinned: bool) -> int:
        if self.uploaded is not None:
            self.uploaded.synchronize()
        if self.bytes.numel() < count:
            self.bytes = torch.empty(count, dtype=torch.uint8, pin_memory=pinned)
        return self.bytes.data_ptr()


class _NoStream:
    """Of the CPU, which has done its work when a call returns."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...

    def record_event(self) -> None: ...

    def synchronize(self) -> None: ...


def _matrix(elements: torch.Tensor, rows: int, columns: int, stride: int) -> torch.Tensor:
    return elements.as_strided((rows, columns), (stride, 1), elements.storage_offset())


def _runs(tensor: torch.Tensor, begin: int, end: int) -> Iterator[torch.Tensor]:
    """Some of a tensor's elements in the order of its axes: part of a row, whole rows, part of a row."""
    row = math.prod(tensor.shape[1:])
    first_whole = min(end, -(-begin // row) * row)
    end_of_whole = max(first_whole, end // row * row)
    if begin < first_whole:
        yield from _runs(tensor[begin // row], begin % row, begin % row + first_whole - begin)
    if first_whole < end_of_whole:
        yield tensor[first_whole // row : end_of_whole // row]
    if end_of_whole < end:
        yield from _runs(tensor[end_of_whole // row], 0, end - end_of_whole)
