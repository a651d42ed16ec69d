"""Checkpoints of all families in every form in which they are met, written by hand: random bits, tensors of one expert
strewn over files, headers of any length."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import checkpoints
import reference
import variant_models
from checkpoints import HIDDEN, INTERMEDIATE

DEFAULT_LAYERS = {"qwen3_5_moe": 4, "qwen3_vl_moe": 2, "qwen3_moe": 2, "qwen3_next": 2}


@dataclass(frozen=True)
class Variant:
    family: str
    experts: int = 6
    width: int = INTERMEDIATE  # of an expert
    hidden: int = HIDDEN
    layers: int = 0  # 0: a few
    files: int = 3
    index: bool = True
    odd: bool = False  # tensor data begins at odd addresses of the files
    dtype: str = ""  # of all tensors; empty: BF16 and, in Qwen3.5, two in F32, as on the Hub
    spelling: str = "model."  # how names begin: "model.", "", or "model.layers" for no `language_model.`
    layout: str = "hub"  # Qwen3-VL-MoE: hub or transformers
    split_decoder: bool = False  # not of Qwen3-VL-MoE: one tensor per expert and projection
    split_mtp: bool = False
    text: bool = False  # Qwen3.5: the text model alone
    fp8: str = ""  # what is quantised: words of "decoder mtp dense"
    unquantised: str = ""  # regex, from their first character on, of the keys that are not
    scales: str = "BF16"  # their dtype
    scale_names: int = 0  # of `reference.scale_keys`
    nan: bool = False  # among the codes
    trained: str = "bfloat16"  # the dtype that config.json says

    def __post_init__(self):
        object.__setattr__(self, "layers", self.layers or DEFAULT_LAYERS[self.family])

    def write(self, folder):
        """Write the checkpoint into a new folder."""
        folder = Path(folder)
        folder.mkdir(parents=True)
        tensors = list(self._tensors())
        tensors.sort(key=lambda tensor: tensor[0][::-1])  # an order that nobody else uses
        weight_map = {}
        for n in range(self.files):
            name = f"model-{n + 1:05}-of-{self.files:05}.safetensors" if self.files > 1 else "model.safetensors"
            self._write_file(folder / name, tensors[n :: self.files])
            weight_map |= {key: name for key, _, _ in tensors[n :: self.files]}
        if self.index and self.files > 1:
            index = {"metadata": {"total_size": sum(bits.nbytes for _, _, bits in tensors)}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        (folder / "config.json").write_text(json.dumps(variant_models.config(self), indent=2))
        (folder / "tokenizer.json").write_text("{}\n")
        return folder

    def _write_file(self, path, tensors):
        metadata = {"format": "pt"}
        begin = len(checkpoints.write_safetensors(path, tensors, metadata))
        if begin % 2 != self.odd:
            begin = len(checkpoints.write_safetensors(path, tensors, metadata, pad=1))
        assert begin % 2 == self.odd

    def _tensors(self):
        random = np.random.default_rng(24)
        for key, shape in variant_models.shapes(self).items():
            left_out = self.unquantised and re.match(self.unquantised, key)
            if not left_out and variant_models.is_quantised(key, self.fp8.split()):
                yield key, "F8_E4M3", self._codes(random, shape)
                yield reference.scale_keys(key)[self.scale_names], self.scales, self._scales(random, shape)
            else:
                dtype = self.dtype or ("F32" if key.endswith(("A_log", "linear_attn.norm.weight")) else "BF16")
                yield key, dtype, _random_bits(random, shape, dtype)

    def _codes(self, random, shape):
        codes = _random_bits(random, shape, "F8_E4M3")
        return codes if self.nan else np.where(codes & 0x7F == 0x7F, np.uint8(0x35), codes)

    def _scales(self, random, shape):
        """Of both signs, most of a size as in releases, some as large or small as their dtype has them."""
        blocks = [*shape[:-2], *(-(-size // 128) for size in shape[-2:])]
        exponents = random.integers(112, 130, blocks)
        anything = {"F16": (98, 143), "BF16": (1, 255), "F32": (1, 255)}[self.scales]
        exponents = np.where(random.random(blocks) < 0.25, random.integers(*anything, blocks), exponents)
        bits = random.integers(0, 1 << 23, blocks) | exponents << 23 | random.integers(0, 2, blocks) << 31
        if self.scales == "F16":
            return bits.astype("<u4").view("<f4").astype("<f2").view("<u2")
        return (bits >> 16).astype("<u2") if self.scales == "BF16" else bits.astype("<u4")

    def __str__(self):
        """What is special about it."""
        words = [self.family, f"{self.experts} experts", self.dtype.lower()]
        if self.family == "qwen3_vl_moe":
            words.append(self.layout)
        words += [name for name in ("split_decoder", "split_mtp", "text", "odd", "nan") if getattr(self, name)]
        words.append("one file" if self.files == 1 else "" if self.index else "no index")
        words.append({"model.": "", "": "no prefix", "model.layers": "text prefix"}[self.spelling])
        words.append("" if self.width == INTERMEDIATE else f"width {self.width}")
        words.append(self.fp8 and f"fp8 {self.fp8} scales {self.scales.lower()} {'of module' * self.scale_names}")
        words.append("" if self.trained == "bfloat16" else self.trained)
        return "-".join(word.strip() for word in words if word).replace(" ", "-")


def _random_bits(random, shape, dtype):
    unsigned = np.dtype(reference.BITS[dtype])
    bits = np.frombuffer(random.bytes(int(np.prod(shape)) * unsigned.itemsize), unsigned).reshape(shape)
    # Finite where F16 is widened (rule 55): which NaN comes of a NaN is the processor's choice.
    return bits & unsigned.type(0xBFFF) if dtype == "F16" else bits
