"""Where NeMo Automodel's adapters do odd things, and what rankslice does instead. Run by test_automodel.py."""

import pytest
import torch
from automodel import from_hf, made, model_of

import rankslice
from rankslice import errors

WHOLE = {"rank": 0, "world_size": 1}
LAYER = "model.language_model.layers.0"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return made.synth(tmp_path_factory.mktemp("hub") / "ckpt", "--family", "qwen3_5_moe")


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    return made.synth(tmp_path_factory.mktemp("fp8") / "ckpt", "--family", "qwen3_5_moe", "--quantization", "fp8")


def dequantised(files, key):
    """Rule 58, for a matrix of one dimension at least."""
    codes, scale = files[key].float(), files[f"{key}_scale_inv"].float()
    blocks = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return (codes * blocks[: codes.shape[0], : codes.shape[1]]).bfloat16()


def test_rule_23_weights_of_an_fp8_vl_checkpoint_are_scaled(tmp_path):
    folder = made.synth(tmp_path / "ckpt", "--family", "qwen3_vl_moe", "--quantization", "fp8")
    key = f"{LAYER}.self_attn.q_proj.weight"
    files, ours, theirs = made.tensors_of(folder), rankslice.load(folder, **WHOLE), from_hf(folder)
    assert theirs[key].dtype == torch.float8_e4m3fn  # its scale is lost
    assert made.is_same(ours[key], dequantised(files, key))


def test_rule_42_a_lost_expert_is_an_error(fp8, tmp_path):
    folder = made.copied(fp8, tmp_path / "ckpt")
    made.remove_tensors(folder, lambda key: key.startswith(f"{LAYER}.mlp.experts.3."))
    assert from_hf(folder)[f"{LAYER}.mlp.experts.down_projs"].shape[0] == 7
    with pytest.raises(errors.FormatError, match=r"layers\.0\.mlp\.experts\.3\."):
        rankslice.load(folder, **WHOLE)


def test_rule_42_an_expert_too_many_is_an_error(hub, tmp_path):
    folder = made.copied(hub, tmp_path / "ckpt")
    key = f"{LAYER}.mlp.experts.down_proj"
    made.replace_tensor(folder, key, torch.cat([made.tensors_of(folder)[key]] * 2))
    assert from_hf(folder)[f"{LAYER}.mlp.experts.down_projs"].shape[0] == 8
    with pytest.raises(errors.FormatError, match=key):
        rankslice.load(folder, **WHOLE)


def test_rule_43_the_text_model_of_a_vision_model_has_one_spelling(hub):
    ours = rankslice.load(rankslice.open(hub, text_only=True), **WHOLE)
    adapter = model_of(hub).state_dict_adapter
    adapter.text_only = True
    theirs = adapter.from_hf(made.tensors_of(hub))
    assert "model.layers.0.mlp.experts.down_projs" in theirs and f"{LAYER}.input_layernorm.weight" in theirs
    assert "model.layers.0.mlp.experts.down_projs" in ours and "model.layers.0.input_layernorm.weight" in ours
    assert [name for name in ours if "language_model" in name or "visual" in name] == []


def test_rule_57_gdn_parameters_go_home_in_the_dtype_of_their_source(hub, tmp_path):
    key, name = f"{LAYER}.linear_attn.dt_bias", f"{LAYER}.linear_attn._fp32_params.dt_bias"
    files, state = made.tensors_of(hub), rankslice.load(hub, **WHOLE)
    theirs = model_of(hub).state_dict_adapter.to_hf(state)
    assert (files[key].dtype, state[name].dtype, theirs[key].dtype) == (torch.bfloat16, torch.float32, torch.float32)
    rankslice.to_hf(state, tmp_path / "out")
    assert made.is_same(made.tensors_of(tmp_path / "out")[key], files[key])
    rankslice.to_hf(state, tmp_path / "upstream", gdn_dtype="upstream")
    assert made.differences(theirs, made.tensors_of(tmp_path / "upstream")) == []


def test_rule_60_no_scale_is_dropped_whose_weight_is_fp8(fp8):
    files, ours, theirs = made.tensors_of(fp8), rankslice.load(fp8, **WHOLE), from_hf(fp8)
    scaled = {key.removesuffix("_scale_inv") for key in files if key.endswith("_scale_inv")}
    others = {key: key.replace(".shared_expert.", ".shared_experts.") for key in scaled if ".experts." not in key}
    assert others
    for key, name in others.items():
        assert theirs[name].dtype == torch.float8_e4m3fn
        assert made.is_same(ours[name], dequantised(files, key))
    same = {name: tensor for name, tensor in theirs.items() if name not in others.values()}
    assert made.differences(same, {name: ours[name] for name in ours if name not in others.values()}) == []
