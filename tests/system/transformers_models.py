"""Tiny models with random BF16 weights, made and saved by transformers, in several shards."""

from pathlib import Path

import torch

VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "patch_size": 4,
}
TEXT = {
    "vocab_size": 256,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "moe_intermediate_size": 24,
    "num_experts": 6,
    "num_experts_per_tok": 2,
}
TOKENS = {"image_token_id": 250, "video_token_id": 251, "vision_start_token_id": 252, "vision_end_token_id": 253}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True}
PROMPT = torch.tensor([[5, 17, 101, 3, 42]])


HYBRID = TEXT | {
    "num_hidden_layers": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "shared_expert_intermediate_size": 16,
}


def save_qwen3_5(folder, per_expert=False):
    """Qwen3.5-MoE, its experts stacked or one by one (rule 5a). Returns the model."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration

    text = HYBRID | {"rope_parameters": ROPE | {"partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0]}}
    config = Qwen3_5MoeConfig(text_config=text, vision_config=VISION, **TOKENS)
    return _save(folder, Qwen3_5MoeForConditionalGeneration, config, save_original_format=per_expert)


def save_qwen3_5_text(folder, per_expert):
    """The language model of Qwen3.5-MoE by itself."""
    from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

    rope = ROPE | {"partial_rotary_factor": 0.25, "mrope_section": [1, 1, 0]}
    config = Qwen3_5MoeTextConfig(**HYBRID, rope_parameters=rope)
    return _save(folder, Qwen3_5MoeForCausalLM, config, save_original_format=per_expert)


def save_qwen3_next(folder, per_expert):
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(**HYBRID, intermediate_size=40)
    return _save(folder, Qwen3NextForCausalLM, config, save_original_format=per_expert)


def save_qwen3_moe(folder, per_expert):
    """Qwen3-MoE, whose second layer has no experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(**TEXT, num_hidden_layers=4, intermediate_size=40, mlp_only_layers=[1])
    return _save(folder, Qwen3MoeForCausalLM, config, save_original_format=per_expert)


def save_qwen3_vl(folder, width=24, experts=6, tied=False):
    """Qwen3-VL-MoE, experts `width` wide, whose head may be its embedding. Returns the model."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    text = TEXT | {
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "moe_intermediate_size": width,
        "num_experts": experts,
        "mlp_only_layers": [],
        "rope_parameters": ROPE | {"mrope_section": [4, 2, 2]},
    }
    vision = VISION | {"deepstack_visual_indexes": [0, 1]}
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **TOKENS)
    return _save(folder, Qwen3VLMoeForConditionalGeneration, config)


def _save(folder, kind, config, **how):
    torch.manual_seed(7)
    model = kind._from_config(config, dtype=torch.bfloat16).eval()
    model.save_pretrained(folder, max_shard_size="60KB", **how)
    assert len(list(Path(folder).glob("*.safetensors"))) > 2
    return model


def logits(model):
    with torch.no_grad():
        found = model(input_ids=PROMPT).logits
    assert torch.isfinite(found).all()
    return found


def assert_same_model(model, folder):
    """transformers finds the same parameters in a folder, and they compute the same."""
    again = type(model).from_pretrained(folder).eval()
    expected, found = dict(model.named_parameters()), dict(again.named_parameters())
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert torch.equal(logits(model), logits(again))
