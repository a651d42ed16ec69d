"""LoRA with peft, and models built with accelerate: what users do with them, and what rankslice does then."""

import pytest
import torch

import made
import rankslice
from rankslice import _wrappers, errors

LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}


@pytest.fixture(scope="module", params=["qwen3_5_moe, experts grouped", "qwen3_vl_moe"])
def folder(request, tmp_path_factory):
    return made.saved_as(request.param, tmp_path_factory.mktemp("saved") / "ckpt")


def adapted(model, **options):
    """The model inside what peft makes of it, which knows it by longer names."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    return get_peft_model(model, LoraConfig(**LORA, **options))


def with_values(model, value=0.5):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def adapters(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" in name}


def test_a_wrapped_name_is_that_of_the_model():
    for wrapped, name in {
        "lm_head.weight": "lm_head.weight",
        "module.lm_head.weight": "lm_head.weight",
        "_orig_mod.module.base_model.model.lm_head.base_layer.weight": "lm_head.weight",
        "base_model.model.lm_head.original_module.weight": "lm_head.weight",
        "base_model.model.layers.1.mlp.experts.base_layer.base_layer.down_proj": "layers.1.mlp.experts.down_proj",
        "model.layers.1._checkpoint_wrapped_module._fsdp_wrapped_module.norm.weight": "model.layers.1.norm.weight",
    }.items():
        assert _wrappers.bare(wrapped) == name


def test_wrappers_do_not_make_two_names_one():
    tensors = {"lm_head.weight": torch.zeros(1), "module.lm_head.weight": torch.zeros(1)}
    with pytest.raises(errors.PlanError, match="two lm_head.weight"):
        _wrappers.without_wrappers(tensors)


@pytest.mark.parametrize("options", [{}, EXPERTS, {"use_dora": True}], ids=str)
def test_load_into_fills_what_peft_wrapped_and_leaves_the_adapter_alone(folder, options):
    expected = adapted(made.pretrained(folder), **options)
    model = with_values(adapted(made.pretrained(folder), **options))
    before = adapters(model)
    assert before

    rankslice.load_into(model, folder)

    assert made.differences(before, adapters(model)) == []
    base = {name: tensor for name, tensor in expected.state_dict().items() if "lora_" not in name}
    assert made.differences(base, {name: model.state_dict()[name] for name in base}) == []


def test_load_into_makes_a_model_on_the_meta_device_real_under_its_adapter(folder):
    model = adapted(made.on_meta(folder))
    rankslice.load_into(model.base_model.model, folder)
    left = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    assert left == [name for name in model.state_dict() if "lora_" in name]


def test_a_model_goes_home_merged(folder, tmp_path):
    """Only what the adapter changed differs from the source."""
    merged = adapted(made.pretrained(folder), **EXPERTS).merge_and_unload()
    rankslice.to_hf(merged.state_dict(), tmp_path / "out", source=folder)
    again = made.pretrained(tmp_path / "out")
    assert made.differences(merged.state_dict(), again.state_dict()) == []
    changed = made.differences(made.tensors_of(folder), made.tensors_of(tmp_path / "out"))
    assert changed and all(key.split(".")[-2] in ("q_proj", "down_proj", "experts") for key in changed)


def test_the_base_of_an_adapted_model_is_not_exported_as_if_it_were_the_model(folder, tmp_path):
    model = adapted(made.pretrained(folder))
    with pytest.raises(errors.PlanError, match=r"lora_A.*merge"):
        rankslice.to_hf(model.state_dict(), tmp_path / "out", source=folder)
    with pytest.raises(errors.PlanError, match=r"lora_A.*merge"):
        rankslice.to_hf(model, tmp_path / "out", source=folder)
    assert not (tmp_path / "out").exists()


def test_a_copy_that_peft_trains_is_not_left_unfilled(folder):
    """Of what it saves whole peft keeps the original and a copy, which it makes when it wraps the model."""
    model = adapted(made.pretrained(folder), modules_to_save=["lm_head"])
    with pytest.raises(errors.PlanError, match=r"lm_head\.modules_to_save\.default\.weight"):
        rankslice.load_into(model, folder)


def test_adapter_tensors_in_a_checkpoint_are_tensors_like_any_others(folder, tmp_path):
    source = made.copied(folder, tmp_path / "source")
    key = "model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    made.add_tensor(source, key, torch.ones(2, 32))
    state = rankslice.load(source, rank=0, world_size=1)
    assert made.is_same(state[key], torch.ones(2, 32))
    rankslice.to_hf(dict(state), tmp_path / "out", source=source)
    assert made.files(tmp_path / "out") == made.files(source)


# accelerate ----------------------------------------------------------------------------------------------------------


def test_a_model_that_accelerate_built_without_memory_is_filled(folder):
    """Its buffers are real already."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        assigned = made.built(folder)
        filled = made.built(folder)
    assigned.load_state_dict(rankslice.load(folder, rank=0, world_size=1, names="transformers"), assign=True)
    rankslice.load_into(filled, folder)

    expected = made.logits(made.pretrained(folder))
    assert torch.equal(made.logits(assigned), expected)
    assert torch.equal(made.logits(filled), expected)


def test_a_filled_model_is_dispatched_like_one_of_load_checkpoint_and_dispatch(folder):
    from accelerate import dispatch_model, init_empty_weights, load_checkpoint_and_dispatch

    with init_empty_weights():
        usual = made.built(folder)
        model = made.built(folder)
    load_checkpoint_and_dispatch(usual, folder, device_map={"": "cpu"})
    rankslice.load_into(model, folder)
    dispatch_model(model, device_map={"": "cpu"})
    assert made.differences(usual.state_dict(), model.state_dict()) == []
    assert torch.equal(made.logits(model), made.logits(usual))
