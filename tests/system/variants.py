"""Checkpoints of both families in every form in which they are met, written by hand: random bits, tensors of one expert
strewn over files, headers of any length."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import checkpoints
import reference
from checkpoints import HIDDEN, INTERMEDIATE, VOCAB

VISION = 6


@dataclass(frozen=True)
class Variant:
    family: str
    experts: int = 6
    width: int = INTERMEDIATE  # of an expert
    files: int = 3
    index: bool = True
    odd: bool = False  # tensor data begins at odd addresses of the files
    dtype: str = ""  # of all tensors; empty: BF16 and, in Qwen3.5, two in F32, as on the Hub
    spelling: str = "model."  # how names begin: "model.", "", or "model.layers" for no `language_model.`
    layout: str = "hub"  # Qwen3-VL-MoE: hub or transformers
    split_decoder: bool = False  # Qwen3.5: one tensor per expert and projection
    split_mtp: bool = False

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
        (folder / "config.json").write_text(json.dumps(self.config(), indent=2))
        (folder / "tokenizer.json").write_text("{}\n")
        return folder

    def config(self):
        return (_vl_config if self.family == "qwen3_vl_moe" else _qwen3_5_config)(self)

    def _write_file(self, path, tensors):
        metadata = {"format": "pt"}
        begin = len(checkpoints.write_safetensors(path, tensors, metadata))
        if begin % 2 != self.odd:
            begin = len(checkpoints.write_safetensors(path, tensors, metadata, pad=1))
        assert begin % 2 == self.odd

    def _tensors(self):
        random = np.random.default_rng(24)
        for key, shape in self._shapes().items():
            dtype = self.dtype or ("F32" if key.endswith(("A_log", "linear_attn.norm.weight")) else "BF16")
            unsigned = np.dtype(reference.BITS[dtype])
            bits = np.frombuffer(random.bytes(int(np.prod(shape)) * unsigned.itemsize), unsigned).reshape(shape)
            # Finite where F16 is widened (rule 55): which NaN comes of a NaN is the processor's choice.
            yield key, dtype, bits & unsigned.type(0xBFFF) if dtype == "F16" else bits

    def _shapes(self):
        if self.family == "qwen3_vl_moe":
            shapes = vl_shapes(self.experts, self.width, swapped=self.layout == "transformers")
        else:
            shapes = checkpoints.mini_shapes(self.experts, layers=4, width=self.width)
            shapes = _split(shapes, self.split_decoder, self.split_mtp)
        return {self._spelled(key): shape for key, shape in shapes.items()}

    def _spelled(self, key):
        if self.spelling == "model.layers":
            return key.replace("model.language_model.layers.", "model.layers.")
        return key if self.spelling else key.removeprefix("model.")

    def __str__(self):
        """What is special about it."""
        words = [self.family.removesuffix("_moe"), f"{self.experts} experts", self.dtype.lower()]
        if self.family == "qwen3_vl_moe":
            words.append(self.layout)
        words += [name for name in ("split_decoder", "split_mtp", "odd") if getattr(self, name)]
        words.append("one file" if self.files == 1 else "" if self.index else "no index")
        words.append({"model.": "", "": "no prefix", "model.layers": "text prefix"}[self.spelling])
        words.append("" if self.width == INTERMEDIATE else f"width {self.width}")
        return "-".join(word for word in words if word).replace(" ", "-")


def _split(shapes, decoder, mtp):
    """One entry per expert and projection instead of the stacked ones."""
    found = {}
    for key, shape in shapes.items():
        if not reference.is_stacked(key) or not (mtp if key.startswith("mtp.") else decoder):
            found[key] = shape
            continue
        module, name = key.rsplit(".", 1)
        experts, rows, columns = shape
        parts = {"gate_proj": rows // 2, "up_proj": rows // 2} if name == "gate_up_proj" else {"down_proj": rows}
        for x in range(experts):
            found |= {f"{module}.{x}.{part}.weight": [height, columns] for part, height in parts.items()}
    return found


def _qwen3_5_config(variant):
    config = checkpoints.mini_config(variant.experts, layers=4)
    config["text_config"]["moe_intermediate_size"] = variant.width
    return config


# Qwen3-VL-MoE -------------------------------------------------------------------------------------------------------

VL_LAYERS = 2
VL_HEAD, VL_HEADS = 4, 2


def vl_shapes(experts, width, swapped):
    shapes = {
        "model.language_model.embed_tokens.weight": [VOCAB, HIDDEN],
        "model.language_model.norm.weight": [HIDDEN],
        "lm_head.weight": [VOCAB, HIDDEN],
        "model.visual.patch_embed.proj.weight": [VISION, 3, 2, 2, 2],
        "model.visual.patch_embed.proj.bias": [VISION],
        "model.visual.pos_embed.weight": [9, VISION],
        "model.visual.blocks.0.attn.qkv.weight": [3 * VISION, VISION],
        "model.visual.merger.linear_fc2.weight": [HIDDEN, 4 * VISION],
        "model.visual.deepstack_merger_list.0.norm.bias": [4 * VISION],
    }
    both, down = [HIDDEN, 2 * width], [width, HIDDEN]
    for layer in range(VL_LAYERS):
        module = f"model.language_model.layers.{layer}"
        shapes |= {
            f"{module}.input_layernorm.weight": [HIDDEN],
            f"{module}.post_attention_layernorm.weight": [HIDDEN],
            f"{module}.self_attn.q_proj.weight": [VL_HEADS * VL_HEAD, HIDDEN],
            f"{module}.self_attn.k_proj.weight": [VL_HEAD, HIDDEN],
            f"{module}.self_attn.v_proj.weight": [VL_HEAD, HIDDEN],
            f"{module}.self_attn.o_proj.weight": [HIDDEN, VL_HEADS * VL_HEAD],
            f"{module}.self_attn.q_norm.weight": [VL_HEAD],
            f"{module}.self_attn.k_norm.weight": [VL_HEAD],
            f"{module}.mlp.gate.weight": [experts, HIDDEN],
            f"{module}.mlp.experts.gate_up_proj": [experts, *(both[::-1] if swapped else both)],
            f"{module}.mlp.experts.down_proj": [experts, *(down[::-1] if swapped else down)],
        }
    return shapes


def _vl_config(variant):
    """The number of experts stands under the name that each layout's writer uses (rule 61)."""
    count = {"hub": "num_experts", "transformers": "num_local_experts"}[variant.layout]
    return {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "text_config": {
            "model_type": "qwen3_vl_moe_text",
            "dtype": "bfloat16",
            "hidden_size": HIDDEN,
            "moe_intermediate_size": variant.width,
            count: variant.experts,
            "num_experts_per_tok": 2,
            "num_hidden_layers": VL_LAYERS,
            "num_attention_heads": VL_HEADS,
            "num_key_value_heads": 1,
            "head_dim": VL_HEAD,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "vocab_size": VOCAB,
        },
        "vision_config": {"model_type": "qwen3_vl_moe", "depth": 1, "hidden_size": VISION, "out_hidden_size": HIDDEN},
    }
