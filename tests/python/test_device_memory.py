"""What C++ calls to reach tensors, against the contract of device.hpp; the CPU plays the device's part."""

import ctypes
import random
from itertools import permutations, product

import pytest
import torch

from rankslice import _device

CPU = torch.device("cpu")


@pytest.fixture
def memory():
    return _device._Memory(CPU)


def stage(memory, values):
    """As C++ does: bytes written to the address of a staging block."""
    ctypes.memmove(memory.staging(len(values)), values, len(values))


def downloaded(memory, address, count):
    found = bytearray(count)
    memory.download(address, memoryview(found))
    return bytes(found)


def bytes_of(tensor):
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def test_what_goes_up_comes_down(memory):
    to = memory.allocate(100)
    stage(memory, bytes(range(100)))
    memory.upload(10, 50, to + 7)
    memory.finish()
    assert downloaded(memory, to + 7, 50) == bytes(range(10, 60))
    assert memory.peak_bytes() >= 100


@pytest.mark.parametrize("element_bytes", [1, 2, 4, 8])
def test_matrices_are_turned_whatever_their_strides(memory, element_bytes):
    dtype = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[element_bytes]
    for rows, columns, padding, to_padding, begin in product([1, 3], [1, 5], [0, 2], [0, 4], [0, 2]):
        stride, to_stride = columns + padding, rows + to_padding
        staged = torch.randint(0, 100, (begin + rows * stride,), dtype=dtype)
        to = memory.allocate(columns * to_stride * element_bytes)
        stage(memory, bytes(columns * to_stride * element_bytes))
        memory.upload(0, columns * to_stride * element_bytes, to)
        stage(memory, bytes_of(staged))
        memory.upload_transposed(begin * element_bytes, rows, columns, stride, element_bytes, to, to_stride)
        memory.finish()
        expected = torch.zeros(columns, to_stride, dtype=dtype)
        expected[:, :rows] = staged[begin:].view(rows, stride)[:, :columns].t()
        assert downloaded(memory, to, columns * to_stride * element_bytes) == bytes_of(expected)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_any_part_of_any_view_is_read_in_the_order_of_its_axes(memory, shape, wanted):
    for axes, step in product(permutations(range(len(shape))), [1, 2]):
        stored = torch.rand([size * step for size in shape]).permute(axes)
        view = stored[tuple(slice(None, None, step) for _ in shape)]
        address, size = memory.know_view(view, wanted), wanted.itemsize
        values = bytes_of(view.to(wanted))
        for begin in range(view.numel()):
            for end in range(begin + 1, view.numel() + 1):
                found = downloaded(memory, address + begin * size, (end - begin) * size)
                assert found == values[begin * size : end * size], (axes, step, begin, end)


def test_tensors_that_share_memory_are_all_found(memory):
    flat = torch.arange(100, dtype=torch.int32)
    tensors = [flat[10:20], flat[10:50], flat, flat[40:41], flat.view(10, 10)[3:]]
    random.Random(0).shuffle(tensors)
    addresses = [memory.know(tensor) for tensor in tensors]
    for tensor, address in zip(tensors, addresses):
        assert downloaded(memory, address, tensor.nbytes) == bytes_of(tensor)


def test_memory_counts_until_it_is_released(memory):
    kept, released = memory.allocate(64), memory.allocate(1000)
    memory.release(released, 1000)
    memory.allocate(100)
    assert memory.peak_bytes() == 1064
    stage(memory, b"here")
    memory.upload(0, 4, kept)
    assert downloaded(memory, kept, 4) == b"here"


class Stream(_device._NoStream):
    """Says which uploads were waited for."""

    def __init__(self):
        self.recorded, self.waited_for = 0, []

    def record_event(self):
        self.recorded += 1
        return Event(self, self.recorded)


class Event:
    def __init__(self, stream, number):
        self.stream, self.number = stream, number

    def synchronize(self):
        self.stream.waited_for.append(self.number)


def test_a_staging_block_comes_again_when_its_uploads_are_done_and_waits_for_no_others(memory):
    memory._stream = stream = Stream()
    to = memory.allocate(64)
    first = memory.staging(8)
    memory.upload(0, 4, to)
    memory.upload(4, 4, to)
    second = memory.staging(8)
    assert first != second
    memory.upload_transposed(0, 2, 2, 2, 2, to, 2)
    assert stream.waited_for == []
    assert memory.staging(8) == first and stream.waited_for == [2]
    assert memory.staging(8) == second and stream.waited_for == [2, 3]
    memory.upload(0, 8, to)
    memory.staging(8)
    memory.staging(16)
    assert stream.waited_for[-1] == 4
