"""What one rank loads, and what NeMo Automodel makes of the same files and takes. Run by test_automodel.py, where
Automodel and its transformers can be imported."""

import pytest
import torch
from automodel import from_hf, made, model_of

import rankslice

WHOLE = {"rank": 0, "world_size": 1}


@pytest.fixture(scope="session", params=made.SAVERS)
def saved(request, tmp_path_factory):
    """A checkpoint of each kind that transformers saves."""
    return made.saved_as(request.param, tmp_path_factory.mktemp("saved") / "ckpt")


@pytest.fixture(scope="session", params=["qwen3_5_moe", "qwen3_vl_moe", "qwen3_moe", "qwen3_next"])
def hub(request, tmp_path_factory):
    """A checkpoint with the names and files of one on the Hub, of each family."""
    return made.synth(tmp_path_factory.mktemp("hub") / request.param, "--family", request.param)


def test_the_adapter_gives_the_same_of_a_checkpoint_of_the_hub(hub):
    """Names, dtypes, shapes and bits. Qwen3-Next's adapter knows no MTP block and leaves it as it is."""
    exclude = "mtp" if made.config_of(hub).model_type == "qwen3_next" else None
    ours = rankslice.load(hub, **WHOLE, exclude=exclude)
    theirs = {key: value for key, value in from_hf(hub).items() if not (exclude and key.startswith(exclude))}
    assert made.differences(theirs, ours) == []


def test_its_models_take_a_checkpoint_of_the_hub(hub):
    exclude = "mtp" if made.config_of(hub).model_type == "qwen3_next" else None
    assert_taken(model_of(hub), rankslice.load(hub, **WHOLE, exclude=exclude))


def test_its_models_take_what_transformers_saved(saved):
    """Also where its own adapter fails (rule 5a)."""
    assert_taken(model_of(saved), rankslice.load(saved, **WHOLE))


def assert_taken(model, state):
    found = model.load_state_dict(state, strict=True, assign=True)
    assert (found.missing_keys, found.unexpected_keys) == ([], [])
    assert made.differences(state, model.state_dict()) == []


def test_the_adapter_gives_the_same_of_what_transformers_saved(saved):
    """But for two kinds (rule 5a)."""
    files, config, ours = made.tensors_of(saved), made.config_of(saved), rankslice.load(saved, **WHOLE)
    experts = files.get("model.language_model.layers.0.mlp.experts.gate_up_proj")
    if config.model_type == "qwen3_5_moe" and experts is None:
        with pytest.raises(RuntimeError, match="Missing FP8 gate_proj weight/scale for layer 0, expert 0"):
            from_hf(saved)
    elif config.model_type == "qwen3_vl_moe" and experts.shape[2] == config.text_config.hidden_size:
        untransposed = [key for key in ours if ".mlp.experts." in key]
        assert made.differences(from_hf(saved), ours) == sorted(untransposed)
    else:
        assert made.differences(from_hf(saved), ours) == []


def test_its_qwen3_5_computes_the_same_with_ours_and_theirs(tmp_path):
    """The others need a GPU even to be made."""
    folder = made.saved_as("qwen3_5_moe, experts grouped", tmp_path / "ckpt")
    outputs = []
    for state in (rankslice.load(folder, **WHOLE), from_hf(folder)):
        model = model_of(folder, "cpu")
        model.load_state_dict(state, assign=True)
        outputs.append(made.logits(model))
    assert torch.equal(*outputs)
