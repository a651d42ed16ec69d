"""The tensors and the config.json of each family's hand-written checkpoints."""

import re

import checkpoints
import reference
from checkpoints import VOCAB

VISION = 6
VL_HEAD, VL_HEADS = 4, 2
# What FP8 releases quantise beside the experts.
DENSE_MATRICES = re.compile(
    r".*\.(self_attn\.[qkvo]_proj|shared_expert\.(gate|up|down)_proj"
    r"|linear_attn\.(in_proj_(qkv|z|qkvz)|out_proj))\.weight"
)
QUANTIZATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}


def shapes(variant):
    """HF key -> shape, of all tensors but scales."""
    return {_spelled(key, variant): shape for key, shape in SHAPES[variant.family](variant).items()}


def config(variant):
    made = CONFIGS[variant.family](variant)
    if variant.fp8:
        made["quantization_config"] = QUANTIZATION
    return made


def is_quantised(key, what):
    """Whether a checkpoint quantises a tensor: `what` is of "decoder", "mtp" (experts), "dense"."""
    if reference.is_stacked(key) or reference.is_split(key):
        return ("mtp" if "mtp." in key else "decoder") in what
    return "dense" in what and bool(DENSE_MATRICES.fullmatch(key) or key.endswith("mtp.fc.weight"))


def _spelled(key, variant):
    if variant.spelling == "model.layers":
        return key.replace("model.language_model.layers.", "model.layers.")
    return key if variant.spelling else key.removeprefix("model.")


def _split(found, decoder, mtp):
    """One entry per expert and projection instead of the stacked ones."""
    split = {}
    for key, shape in found.items():
        if not reference.is_stacked(key) or not (mtp if key.startswith("mtp.") else decoder):
            split[key] = shape
            continue
        module, name = key.rsplit(".", 1)
        experts, rows, columns = shape
        parts = {"gate_proj": rows // 2, "up_proj": rows // 2} if name == "gate_up_proj" else {"down_proj": rows}
        for x in range(experts):
            split |= {f"{module}.{x}.{part}.weight": [height, columns] for part, height in parts.items()}
    return split


def _sizes(variant):
    return variant.experts, variant.layers, variant.width, variant.hidden


# Qwen3.5-MoE --------------------------------------------------------------------------------------------------------


def _qwen3_5_shapes(variant):
    found = checkpoints.mini_shapes(*_sizes(variant))
    if variant.text:
        found = _text_part(found)
    return _split(found, variant.split_decoder, variant.split_mtp)


def _text_part(found):
    """What a text model has of a model that sees."""
    return {
        key.replace("model.language_model.", "model."): shape
        for key, shape in found.items()
        if not key.startswith("model.visual.")
    }


def _qwen3_5_config(variant):
    made = checkpoints.mini_config(*_sizes(variant))
    made["text_config"]["dtype"] = variant.trained
    return made["text_config"] if variant.text else made


# Qwen3-Next and Qwen3-MoE -------------------------------------------------------------------------------------------


def _qwen3_next_shapes(variant):
    """One matrix for q, k, v and z of the linear attention, and one for a and b."""
    found = {}
    for key, shape in _text_part(checkpoints.mini_shapes(*_sizes(variant))).items():
        if key.endswith(("in_proj_z.weight", "in_proj_b.weight")):
            continue
        name = key.replace("in_proj_qkv.", "in_proj_qkvz.").replace("in_proj_a.", "in_proj_ba.")
        found[name] = shape if name == key else [2 * shape[0], shape[1]]
    return _split(found, variant.split_decoder, variant.split_mtp)


def _qwen3_next_config(variant):
    text = _qwen3_5_config(variant)["text_config"]
    return text | {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next"}


def _qwen3_moe_shapes(variant):
    found = {
        "model.embed_tokens.weight": [VOCAB, variant.hidden],
        "model.norm.weight": [variant.hidden],
        "lm_head.weight": [VOCAB, variant.hidden],
    }
    for layer in range(variant.layers):
        module = f"model.layers.{layer}"
        of_layer = checkpoints.moe_shapes(module, variant.experts, variant.width, variant.hidden)
        found |= {key: shape for key, shape in of_layer.items() if "shared_expert" not in key}
        found |= checkpoints.attention_shapes(module, variant.hidden)
    return _split(found, variant.split_decoder, variant.split_mtp)


def _qwen3_moe_config(variant):
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": variant.trained,
        "hidden_size": variant.hidden,
        "moe_intermediate_size": variant.width,
        "num_experts": variant.experts,
        "num_experts_per_tok": 2,
        "num_hidden_layers": variant.layers,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": VOCAB,
    }


# Qwen3-VL-MoE -------------------------------------------------------------------------------------------------------


def _vl_shapes(variant):
    hidden, width, swapped = variant.hidden, variant.width, variant.layout == "transformers"
    found = {
        "model.language_model.embed_tokens.weight": [VOCAB, hidden],
        "model.language_model.norm.weight": [hidden],
        "lm_head.weight": [VOCAB, hidden],
        "model.visual.patch_embed.proj.weight": [VISION, 3, 2, 2, 2],
        "model.visual.patch_embed.proj.bias": [VISION],
        "model.visual.pos_embed.weight": [9, VISION],
        "model.visual.blocks.0.attn.qkv.weight": [3 * VISION, VISION],
        "model.visual.merger.linear_fc2.weight": [hidden, 4 * VISION],
        "model.visual.deepstack_merger_list.0.norm.bias": [4 * VISION],
    }
    both, down = [hidden, 2 * width], [width, hidden]
    for layer in range(variant.layers):
        module = f"model.language_model.layers.{layer}"
        found |= {
            f"{module}.input_layernorm.weight": [hidden],
            f"{module}.post_attention_layernorm.weight": [hidden],
            f"{module}.self_attn.q_proj.weight": [VL_HEADS * VL_HEAD, hidden],
            f"{module}.self_attn.k_proj.weight": [VL_HEAD, hidden],
            f"{module}.self_attn.v_proj.weight": [VL_HEAD, hidden],
            f"{module}.self_attn.o_proj.weight": [hidden, VL_HEADS * VL_HEAD],
            f"{module}.self_attn.q_norm.weight": [VL_HEAD],
            f"{module}.self_attn.k_norm.weight": [VL_HEAD],
            f"{module}.mlp.gate.weight": [variant.experts, hidden],
            f"{module}.mlp.experts.gate_up_proj": [variant.experts, *(both[::-1] if swapped else both)],
            f"{module}.mlp.experts.down_proj": [variant.experts, *(down[::-1] if swapped else down)],
        }
    return found


def _vl_config(variant):
    """The number of experts stands under the name that each layout's writer uses (rule 61)."""
    count = {"hub": "num_experts", "transformers": "num_local_experts"}[variant.layout]
    return {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "text_config": {
            "model_type": "qwen3_vl_moe_text",
            "dtype": variant.trained,
            "hidden_size": variant.hidden,
            "moe_intermediate_size": variant.width,
            count: variant.experts,
            "num_experts_per_tok": 2,
            "num_hidden_layers": variant.layers,
            "num_attention_heads": VL_HEADS,
            "num_key_value_heads": 1,
            "head_dim": VL_HEAD,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "vocab_size": VOCAB,
        },
        "vision_config": {
            "model_type": "qwen3_vl_moe",
            "depth": 1,
            "hidden_size": VISION,
            "out_hidden_size": variant.hidden,
        },
    }


SHAPES = {
    "qwen3_5_moe": _qwen3_5_shapes,
    "qwen3_vl_moe": _vl_shapes,
    "qwen3_moe": _qwen3_moe_shapes,
    "qwen3_next": _qwen3_next_shapes,
}
CONFIGS = {
    "qwen3_5_moe": _qwen3_5_config,
    "qwen3_vl_moe": _vl_config,
    "qwen3_moe": _qwen3_moe_config,
    "qwen3_next": _qwen3_next_config,
}
