"""Rules 51 and 58 against torch: every conversion of elements, and dequantising by block scales.

Numbers are compared by their bits. Of a NaN only that it is one: which bits torch gives it depends on the processor and
on the place in the tensor. F8_E4M3 has one NaN of each sign, and there torch keeps the sign, as we do."""

import itertools
import os
import subprocess

import numpy
import pytest
import torch

PROGRAM = os.environ.get("CONVERT_ELEMENTS_PROGRAM")
TORCH = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F8_E4M3": torch.float8_e4m3fn,
}
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}

pytestmark = pytest.mark.skipif(not PROGRAM, reason="CONVERT_ELEMENTS_PROGRAM is not set")


def bits(tensor):
    return tensor.contiguous().view(BITS[tensor.dtype.itemsize])


def run(data, to, shape, *args):
    done = subprocess.run([PROGRAM, *map(str, args)], input=data, stdout=subprocess.PIPE, check=True)
    return torch.frombuffer(bytearray(done.stdout), dtype=TORCH[to]).reshape(shape)


def raw(tensor):
    return bits(tensor).numpy().tobytes()


def assert_same(found, expected):
    compared = torch.ones(expected.shape, dtype=torch.bool)
    if expected.dtype != torch.float8_e4m3fn:
        compared = ~expected.float().isnan()
        assert torch.equal(found.float().isnan(), ~compared)
    different = torch.nonzero((bits(found) != bits(expected)) & compared)
    assert len(different) == 0, f"{len(different)} elements differ, the first at {different[0].tolist()}"


def every_pattern(dtype):
    width = TORCH[dtype].itemsize
    return torch.from_numpy(numpy.arange(2 ** (8 * width)).astype(f"u{width}")).view(TORCH[dtype])


def f32_sweep():
    """Every sign and exponent with every 11 leading bits of the mantissa, which no target has more of, each followed by
    all that rounding tells apart; and random bits."""
    ends = numpy.array([0, 1, 0x7FF, 0x800, 0x801, 0xFFF], dtype="u4")
    leading = numpy.arange(2**20, dtype="u4") << 12
    random = numpy.random.default_rng(51).integers(2**32, size=2**22, dtype="u4")
    return torch.from_numpy(numpy.concatenate([(leading[:, None] | ends).ravel(), random])).view(torch.float32)


@pytest.mark.parametrize("source, to", list(itertools.permutations(TORCH, 2)))
def test_elements_become_what_torch_makes_of_them(source, to):  # rule 51
    values = f32_sweep() if source == "F32" else every_pattern(source)
    assert_same(run(raw(values), to, values.shape, source, to), values.to(TORCH[to]))


def quantised(rows, columns, scale_dtype):
    """A matrix of random codes, NaN among them, and scales that take some products out of the range of F16."""
    random = torch.Generator().manual_seed(rows * 1000 + columns)
    codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=random)
    grid = (-(-rows // 128), -(-columns // 128))
    scales = torch.exp2(torch.rand(grid, generator=random) * 24 - 14).to(TORCH[scale_dtype])
    return codes.view(torch.float8_e4m3fn), scales


def dequantised_by_torch(codes, scales, to):
    each = scales.float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    return (codes.float() * each[: codes.shape[0], : codes.shape[1]]).to(TORCH[to])


@pytest.mark.parametrize("to", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("scale_dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("rows, columns", [(1, 1), (127, 129), (128, 128), (300, 200), (3, 4200), (513, 65)])
def test_weights_are_codes_times_the_scales_of_their_blocks(rows, columns, scale_dtype, to):  # rule 58
    codes, scales = quantised(rows, columns, scale_dtype)
    found = run(raw(codes) + raw(scales), to, codes.shape, scale_dtype, to, rows, columns, 0, 0, rows, columns)
    assert_same(found, dequantised_by_torch(codes, scales, to))


@pytest.mark.parametrize(
    "box", [(127, 127, 2, 2), (0, 100, 300, 50), (128, 0, 128, 200), (299, 199, 1, 1), (37, 5, 200, 190)]
)
def test_a_box_of_weights_takes_the_scales_by_its_place_in_the_matrix(box):  # rules 58 and 59
    codes, scales = quantised(300, 200, "BF16")
    row, column, rows, columns = box
    found = run(raw(codes) + raw(scales), "BF16", (rows, columns), "BF16", "BF16", 300, 200, *box)
    whole = dequantised_by_torch(codes, scales, "BF16")
    assert_same(found, whole[row : row + rows, column : column + columns])
