"""The values of native tensors (rules 1-5a, 35, 36, 39-41, 51, 55, 58-61), by torch."""

import numpy as np
import torch

from reference_tensors import BITS, Tensor

TORCH_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
SIGNED = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
BLOCK = 128  # of a quantised matrix: so many rows and columns have one scale


def _to_torch(value):
    bits = value.bits if value.bits.flags.writeable else value.bits.copy()
    return torch.from_numpy(np.ascontiguousarray(bits).view(f"<i{bits.itemsize}"))


def _from_torch(dtype, value, any_nan=False):
    bits = value.contiguous().view(SIGNED[value.element_size()]).numpy()
    return Tensor(dtype, bits.view(BITS[dtype]), any_nan)


def swapped(value):
    """Axes 1 and 2 exchanged."""
    return _from_torch(value.dtype, _to_torch(value).transpose(1, 2), value.any_nan)


def cast(value, dtype):
    """The same numbers in another dtype. BF16 is the upper half of an F32, so that even its NaNs are known there."""
    if value.dtype == dtype:
        return value
    floats = _to_torch(value).view(TORCH_FLOATS[value.dtype])
    return _from_torch(dtype, floats.to(TORCH_FLOATS[dtype]), any_nan=(value.dtype, dtype) != ("BF16", "F32"))


def dequantised(codes, scales, dtype):
    """Rule 58: the product in F32, rounded once. Works on the last two axes."""
    rows, columns = codes.shape[-2:]
    blocks = (*codes.shape[:-2], -(-rows // BLOCK), -(-columns // BLOCK))
    assert scales.shape == blocks, f"scales {scales.shape} of {codes.shape}"
    factors = _to_torch(scales).view(TORCH_FLOATS[scales.dtype]).to(torch.float32)
    for axis in (-2, -1):
        factors = factors.repeat_interleave(BLOCK, axis)
    values = _to_torch(codes).view(torch.float8_e4m3fn).to(torch.float32) * factors[..., :rows, :columns]
    return _from_torch(dtype, values.to(TORCH_FLOATS[dtype]), any_nan=True)


def assemble(split):
    """A stacked native tensor from {(expert, part): tensor} (rules 40, 41): gate | up side by side, or down."""
    experts = range(1 + max(x for x, _ in split))
    parts = ("down",) if (0, "down") in split else ("gate", "up")
    assert split.keys() == {(x, part) for x in experts for part in parts}
    (dtype,) = {value.dtype for value in split.values()}
    bits = [np.concatenate([split[x, part].bits.T for part in parts], axis=1) for x in experts]
    return Tensor(dtype, np.stack(bits), any(value.any_nan for value in split.values()))
