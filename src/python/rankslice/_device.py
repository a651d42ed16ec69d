"""Memory of torch's devices, as C++ uses it: by calling what is here."""

from __future__ import annotations

from bisect import bisect_right, insort
from types import ModuleType

import torch

from rankslice import _native

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

HOST = {"cpu"}
"""Whose memory C++ uses by itself."""


class Devices:
    """The devices that the tensors of one state are on."""

    def __init__(self) -> None:
        self._memories: dict[torch.device, tuple[_Memory, _native.Device]] = {}

    def of(self, tensor: torch.Tensor) -> _native.Device | None:
        """The device of a contiguous tensor, which C++ may use from now on; None for the host's memory."""
        if tensor.device.type in HOST:
            return None
        if tensor.device not in self._memories:
            memory = _Memory(tensor.device)
            self._memories[tensor.device] = memory, _native.Device(memory)
        memory, device = self._memories[tensor.device]
        memory.know(tensor)
        return device


class _Block:
    """Pinned memory, and the end of the uploads from it."""

    def __init__(self) -> None:
        self.bytes = torch.empty(0, dtype=torch.uint8)
        self.uploaded: torch.Event | None = None


class _Memory:
    """What `_native.Device` calls. Addresses are those of tensors that it knows; work is done on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.kind, self.index, self.name = device.type, device.index or 0, str(device)
        self._device = device
        self._addresses: list[int] = []
        self._tensors: dict[int, torch.Tensor] = {}
        self._blocks = _Block(), _Block()

    def know(self, tensor: torch.Tensor) -> None:
        if tensor.numel() > 0 and tensor.data_ptr() not in self._tensors:
            insort(self._addresses, tensor.data_ptr())
            self._tensors[tensor.data_ptr()] = tensor.detach().view(-1).view(torch.uint8)

    def forget(self, address: int) -> None:
        if self._tensors.pop(address, None) is not None:
            self._addresses.remove(address)

    def allocate(self, count: int) -> int:
        tensor = torch.empty(max(count, 1), dtype=torch.uint8, device=self._device)
        self.know(tensor)
        return tensor.data_ptr()

    def peak_bytes(self) -> int:
        return 0 if self._device.type == "cpu" else self._module.max_memory_allocated(self._device)

    def staging(self, count: int) -> int:
        self._blocks = self._blocks[1], self._blocks[0]
        block = self._blocks[0]
        if block.uploaded is not None:
            block.uploaded.synchronize()
        if block.bytes.numel() < count:
            block.bytes = torch.empty(count, dtype=torch.uint8, pin_memory=self._device.type != "cpu")
        return block.bytes.data_ptr()

    def upload(self, begin: int, count: int, to: int) -> None:
        self._bytes(to, count).copy_(self._blocks[0].bytes[begin : begin + count], non_blocking=True)
        self._uploading()

    def upload_transposed(
        self, begin: int, rows: int, columns: int, stride: int, element_bytes: int, to: int, to_stride: int
    ) -> None:
        """Strides in elements. The bytes go up as they are, and are turned there."""
        dtype = _INTEGERS[element_bytes]
        count = ((rows - 1) * stride + columns) * element_bytes
        staged = self._blocks[0].bytes[begin : begin + count].to(self._device, non_blocking=True)
        self._uploading()
        target = self._bytes(to, ((columns - 1) * to_stride + rows) * element_bytes).view(dtype)
        _matrix(target, columns, rows, to_stride).copy_(_matrix(staged.view(dtype), rows, columns, stride).t())

    def download(self, address: int, to: memoryview) -> None:
        torch.frombuffer(to, dtype=torch.uint8).copy_(self._bytes(address, len(to)))

    def finish(self) -> None:
        if self._device.type != "cpu":
            self._module.current_stream(self._device).synchronize()

    @property
    def _module(self) -> ModuleType:
        return torch.get_device_module(self._device.type)

    def _bytes(self, address: int, count: int) -> torch.Tensor:
        first = self._addresses[bisect_right(self._addresses, address) - 1]
        return self._tensors[first][address - first : address - first + count]

    def _uploading(self) -> None:
        if self._device.type != "cpu":
            uploaded = self._blocks[0].uploaded = self._module.Event()
            uploaded.record(self._module.current_stream(self._device))


def _matrix(elements: torch.Tensor, rows: int, columns: int, stride: int) -> torch.Tensor:
    return elements.as_strided((rows, columns), (stride, 1), elements.storage_offset())
