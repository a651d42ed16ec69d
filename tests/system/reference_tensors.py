"""Tensors as bits: how the reference reads them from safetensors files and compares them."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors

# An element's bits are handled as an unsigned number of its size, so that the payload of a NaN counts.
BITS = {
    "BOOL": "<u1", "U8": "<u1", "I8": "<u1", "F8_E5M2": "<u1", "F8_E4M3": "<u1", "F8_E8M0": "<u1",
    "I16": "<u2", "U16": "<u2", "F16": "<u2", "BF16": "<u2",
    "I32": "<u4", "U32": "<u4", "F32": "<u4",
    "I64": "<u8", "U64": "<u8", "F64": "<u8",
}  # fmt: skip
INFINITY = {"F16": 0x7C00, "BF16": 0x7F80, "F32": 0x7F800000}


@dataclass(frozen=True)
class Tensor:
    dtype: str  # as safetensors spells it
    bits: np.ndarray  # unsigned, in the tensor's shape
    any_nan: bool = False  # which NaN comes of a conversion is the processor's choice

    @property
    def shape(self):
        return self.bits.shape

    @property
    def nbytes(self):
        return self.bits.nbytes

    def __getitem__(self, box):
        return Tensor(self.dtype, self.bits[box], self.any_nan)

    def is_nan(self):
        sign = self.bits.dtype.type(1 << (8 * self.bits.itemsize - 1))
        return (self.bits & ~sign) > INFINITY[self.dtype]


def tensor(dtype, shape, data):
    return Tensor(dtype, np.frombuffer(data, BITS[dtype]).reshape(shape))


# Reading ------------------------------------------------------------------------------------------------------------


def read_file(path):
    """All tensors of one safetensors file, by name."""
    entries = safetensors.deserialize(Path(path).read_bytes())
    return {name: tensor(entry["dtype"], entry["shape"], entry["data"]) for name, entry in entries}


def shard_files(folder):
    """The files with weights: those that the index names, or all when there is no index."""
    indexes = sorted(Path(folder).glob("*.safetensors.index.json"))
    if not indexes:
        return sorted(Path(folder).glob("*.safetensors"))
    names = {name for index in indexes for name in json.loads(index.read_text())["weight_map"].values()}
    return [Path(folder) / name for name in sorted(names)]


def read_folder(folder):
    """All tensors of a Hugging Face checkpoint, by HF key."""
    found = {}
    for path in shard_files(folder):
        found.update(read_file(path))
    return found


def raw_header(path):
    """Length field, JSON and padding, as in the file."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        file.seek(0)
        return file.read(8 + size)


def metadata(path):
    return json.loads(raw_header(path)[8:]).get("__metadata__", {})


def extents(folder):
    """HF key -> (file name, first byte in the file, one past the last)."""
    found = {}
    for path in shard_files(folder):
        header = raw_header(path)
        for name, entry in json.loads(header[8:]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = (path.name, len(header) + begin, len(header) + end)
    return found


# Comparison ---------------------------------------------------------------------------------------------------------


def difference(expected, found):
    """What is different between two tensors, in words; empty when they are equal bit for bit."""
    if expected.dtype != found.dtype:
        return f"dtype {found.dtype} instead of {expected.dtype}"
    if expected.shape != found.shape:
        return f"shape {list(found.shape)} instead of {list(expected.shape)}"
    different = np.asarray(expected.bits != found.bits)
    if expected.any_nan:
        different &= ~(expected.is_nan() & found.is_nan())
    wrong = np.argwhere(different)
    if len(wrong) == 0:
        return ""
    at = tuple(map(int, wrong[0]))
    return f"{len(wrong)} elements, first at {list(at)}: {found.bits[at]:#x} instead of {expected.bits[at]:#x}"


def differences(expected, found):
    """The same for two state dicts: one line per tensor that is missing, superfluous or different."""
    lines = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    lines += [f"{name}: should not be there" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        if what := difference(expected[name], found[name]):
            lines.append(f"{name}: {what}")
    return lines
