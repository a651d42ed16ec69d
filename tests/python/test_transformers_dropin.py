"""transformers' own models take what rankslice loads, compute the same as after `from_pretrained`, and go home."""

import copy

import pytest
import torch

import made
import rankslice
from rankslice import errors

WHOLE = {"rank": 0, "world_size": 1, "names": "transformers"}


@pytest.fixture(scope="session", params=made.SAVERS)
def saved(request, tmp_path_factory):
    """A checkpoint of each kind that transformers saves."""
    return made.saved_as(request.param, tmp_path_factory.mktemp("saved") / "ckpt")


def with_buffers(model, like):
    """Gives a model built on the meta device the buffers that no checkpoint has."""
    theirs = dict(like.named_buffers())
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            module, _, key = name.rpartition(".")
            model.get_submodule(module)._buffers[key] = theirs[name].clone()
    return model


def test_a_model_on_the_meta_device_is_assigned_what_was_loaded(saved):
    expected, model = made.pretrained(saved), made.on_meta(saved)
    found = model.load_state_dict(rankslice.load(saved, **WHOLE), assign=True)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert torch.equal(made.logits(with_buffers(model, expected)), made.logits(expected))


def test_a_module_on_the_meta_device_becomes_the_model(saved):
    """load_into fills its buffers too, which no checkpoint has: rotary embeddings, for example."""
    expected, model = made.pretrained(saved), made.on_meta(saved)
    rankslice.load_into(model, saved)
    assert made.differences(dict(expected.named_parameters()), dict(model.named_parameters())) == []
    assert made.differences(dict(expected.named_buffers()), dict(model.named_buffers())) == []
    assert torch.equal(made.logits(model), made.logits(expected))


def test_a_real_module_is_filled_in_place(saved):
    expected = made.pretrained(saved)
    model = made.built(saved)
    assert made.differences(expected.state_dict(), model.state_dict()) != []
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    rankslice.load_into(model, saved)
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert made.differences(expected.state_dict(), model.state_dict()) == []


def test_an_untouched_model_goes_home_byte_for_byte(saved, tmp_path):
    model = made.on_meta(saved)
    model.load_state_dict(rankslice.load(saved, **WHOLE), assign=True)
    rankslice.to_hf(model.state_dict(), tmp_path / "out", source=saved)
    assert made.files(tmp_path / "out") == made.files(saved)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_experts_compute_and_train_as_views(saved, experts):
    """They share the native memory, with axes 1 and 2 exchanged, and need no copy."""
    usual = as_training_holds_it(made.pretrained(saved, experts_implementation=experts))
    model = copy.deepcopy(usual)
    model.load_state_dict(rankslice.load(saved, **WHOLE), assign=True)
    views = [name for name, parameter in model.named_parameters() if not parameter.is_contiguous()]
    assert views and all(name.endswith((".experts.gate_up_proj", ".experts.down_proj")) for name in views)

    assert torch.equal(made.logits(model), made.logits(usual))
    step(usual), step(model)
    assert made.differences(usual.state_dict(), model.state_dict()) == []


def as_training_holds_it(model):
    """A_log and dt_bias in F32 (rule 55), where from_pretrained has them in the dtype of all others."""
    for name, parameter in model.named_parameters():
        if name.endswith(("A_log", "dt_bias")):
            parameter.data = parameter.data.float()
    return model


def test_a_trained_model_goes_home(saved, tmp_path):
    model = made.on_meta(saved)
    rankslice.load_into(model, saved)
    step(model)
    assert made.differences(made.pretrained(saved).state_dict(), model.state_dict()) != []

    rankslice.to_hf(model.state_dict(), tmp_path / "out", source=saved)
    again = made.pretrained(tmp_path / "out")
    assert made.differences(model.state_dict(), again.state_dict()) == []
    assert torch.equal(made.logits(again), made.logits(model))


def step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(input_ids=torch.tensor([[5, 17, 101, 3, 42]])).logits.float().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_save_pretrained_writes_the_same_of_what_was_loaded(saved, tmp_path):
    model = as_training_holds_it(made.pretrained(saved))
    model.save_pretrained(tmp_path / "usual")
    model.load_state_dict(rankslice.load(saved, **WHOLE), assign=True)
    model.save_pretrained(tmp_path / "out")
    assert made.files(tmp_path / "out") == made.files(tmp_path / "usual")


@pytest.fixture
def one_rank():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_fully_shard_comes_before_filling(one_rank, tmp_path):
    """It takes no views."""
    from torch.distributed.fsdp import fully_shard

    folder = made.saved_as("qwen3_vl_moe", tmp_path / "ckpt")
    assigned = made.on_meta(folder)
    assigned.load_state_dict(rankslice.load(folder, **WHOLE), assign=True)
    with pytest.raises(NotImplementedError, match="non-contiguous"):
        fully_shard(assigned)

    filled = fully_shard(made.on_meta(folder))
    rankslice.load_into(filled, folder)
    assert torch.equal(made.logits(filled), made.logits(made.pretrained(folder)))


# Tied weights: the checkpoint has one tensor, the model two names for it ------------------------------------------


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("tied") / "ckpt"
    text = made.transformers_models.TEXT
    config = Qwen3MoeConfig(**text, num_hidden_layers=1, intermediate_size=40, tie_word_embeddings=True)
    torch.manual_seed(7)
    Qwen3MoeForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    assert "lm_head.weight" not in rankslice.load(folder, **WHOLE)
    return folder


def test_tied_weights_are_tied_again_after_assigning(tied):
    expected, model = made.pretrained(tied), made.on_meta(tied)
    found = model.load_state_dict(rankslice.load(tied, **WHOLE), assign=True, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["lm_head.weight"], [])
    model.tie_weights()
    assert torch.equal(made.logits(with_buffers(model, expected)), made.logits(expected))


def test_tied_weights_stay_tied_where_a_module_is_filled(tied, tmp_path):
    expected, model = made.pretrained(tied), made.on_meta(tied)
    rankslice.load_into(model, tied)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(made.logits(model), made.logits(expected))
    rankslice.to_hf(model.state_dict(), tmp_path / "out", source=tied)
    assert made.files(tmp_path / "out") == made.files(tied)


def test_a_weight_that_is_tied_no_more_is_refused(tied, tmp_path):
    state = made.pretrained(tied).state_dict()
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    with pytest.raises(errors.PlanError, match="lm_head.weight"):
        rankslice.to_hf(state, tmp_path / "out", source=tied)
    assert not (tmp_path / "out").exists()


# What transformers does not load -------------------------------------------------------------------------------------


def test_a_block_that_transformers_has_no_module_for_is_excluded(tmp_path):
    """Checkpoints of the Hub have an MTP block. Its names are those of training frameworks."""
    folder = made.saved_as("qwen3_5_moe, experts grouped", tmp_path / "ckpt")
    made.add_tensor(folder, "mtp.fc.weight", torch.ones(32, 64, dtype=torch.bfloat16))
    model = made.on_meta(folder)
    with pytest.raises(RuntimeError, match="mtp"):
        model.load_state_dict(rankslice.load(folder, **WHOLE), assign=True)
    assert model.load_state_dict(rankslice.load(folder, **WHOLE, exclude="mtp"), assign=True).unexpected_keys == []

    with pytest.raises(errors.Error, match="mtp.layers.0.eh_proj.weight"):
        rankslice.to_hf(model.state_dict(), tmp_path / "out", source=folder)
    rankslice.to_hf(model.state_dict(), tmp_path / "out", source=rankslice.open(folder, exclude="mtp"))
    files = made.tensors_of(folder)
    del files["mtp.fc.weight"]
    assert made.differences(files, made.tensors_of(tmp_path / "out")) == []
