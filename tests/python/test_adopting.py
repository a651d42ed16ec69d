"""Any state dict as C++ sees it: over the same memory where that can be, and with the same values in any case."""

import pytest
import torch
from torch import nn

import rankslice
from ranks import run_ranks
from rankslice import _mesh, _native, _state

ALONE = _mesh.place(rank=0, world_size=1)


@pytest.fixture
def native(tiny):
    return rankslice.load(tiny, rank=0, world_size=1)


def is_as_read(adopted):
    """Whether C++ sees the values of the checkpoint."""
    _native.digest_source(adopted, None, 1, None)
    return not _native.verify(adopted, None, "full", None, 1, None).mismatches


def adopted_from(state, native):
    return _state.adopt(dict(state), native.checkpoint, ALONE)


OTHERS = {
    "another dtype": lambda tensor: tensor.to(torch.float64),
    "strides": lambda tensor: tensor.repeat_interleave(2, -1)[..., ::2],
    "parameters": lambda tensor: nn.Parameter(tensor.clone()),
    "in another order": lambda tensor: tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor,
    "as they were loaded": lambda tensor: tensor,
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("names", ["native", "transformers"])
def test_tensors_are_adopted_by_their_values_and_without_a_copy(native, names, other):
    state = {name: other(tensor) for name, tensor in native.renamed(names).items()}
    adopted = adopted_from(state, native)
    assert is_as_read(adopted)
    for name in ("norm.weight", "layers.0.mlp.experts.down_proj" + "s" * (names == "native")):
        changed = state[f"model.language_model.{name}"]
        before = changed.detach().clone()
        with torch.no_grad():
            changed.add_(1)
            assert not is_as_read(adopted)
            changed.copy_(before)
    assert is_as_read(adopted)


def test_experts_in_the_order_of_transformers_are_adopted_by_their_values(native):
    state = {name: tensor.contiguous() for name, tensor in native.renamed("transformers").items()}
    assert is_as_read(adopted_from(state, native))


def test_a_changed_value_shows(native):
    name = "model.language_model.layers.0.mlp.experts.down_projs"
    native[name][3, 1, 1] += 1
    adopted = adopted_from(native, native)
    _native.digest_source(adopted, None, 1, None)
    (mismatch,) = _native.verify(adopted, None, "full", None, 1, None).mismatches
    assert mismatch.tensor.endswith("layers.0.mlp.experts.down_proj") and mismatch.expert == 3


def test_what_a_loaded_state_was_read_from_goes_along(native):
    adopted = _state.adopt(native, None, ALONE)
    assert not _native.verify(adopted, None, "full", None, 1, None).mismatches
    native["model.language_model.norm.weight"][0] += 1
    (mismatch,) = _native.verify(adopted, None, "full", None, 1, None).mismatches
    assert mismatch.tensor == "model.language_model.norm.weight"


def test_a_freed_tensor_is_none_of_the_state_any_more(native):
    del native["lm_head.weight"]
    assert _state.adopt(native, None, ALONE).bytes_owned == sum(tensor.nbytes for tensor in native.values())


def test_a_state_without_a_checkpoint_is_of_a_family(native, tmp_path):
    tensors = dict(native.renamed("transformers"))
    adopted = _state.adopt(tensors, None, ALONE, family="qwen3_5_moe", partial=True)
    _native.save_shards(adopted, str(tmp_path / "shards"), None, False, None)
    again = rankslice.load(tmp_path / "shards", rank=0, world_size=1)
    assert again.keys() == native.keys() and all(torch.equal(again[name], native[name]) for name in native)
    with pytest.raises(rankslice.Error, match="give source, or the family"):
        _state.adopt(tensors, None, ALONE)


def test_names_and_shapes_that_the_checkpoint_has_not_are_refused(native):
    with pytest.raises(rankslice.Error, match="model.nothing: .* has no such tensor"):
        adopted_from({**native, "model.nothing": torch.ones(1)}, native)
    name = "model.language_model.norm.weight"
    with pytest.raises(rankslice.Error, match=rf"{name}: expected \[256\].*found \[3\]"):
        adopted_from({**native, name: torch.ones(3)}, native)


def test_an_unknown_tensor_without_values_is_not_taken_for_a_tied_one(tiny):
    place = _mesh.place(rank=15, world_size=16, ep=16)
    state = rankslice.load(tiny, rank=15, world_size=16, ep=16)
    empty = state["model.language_model.layers.0.mlp.experts.down_projs"]
    assert empty.numel() == 0
    with pytest.raises(rankslice.PlanError, match="strange: .* has no such tensor"):
        _state.adopt({**state, "strange": torch.empty_like(empty)}, state.checkpoint, place)


@pytest.mark.parametrize("layout", ["fsdp", "hsdp", "fsdp_tp", "ep_fsdp"])
def test_divided_models_are_adopted_by_what_each_rank_has(tiny, layout):
    run_ranks("adopt_divided.py", 4, tiny, layout)
