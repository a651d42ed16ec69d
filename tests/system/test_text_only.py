"""`--text-only`: the language model of a checkpoint that can also see."""

import pytest

import checkpoints
import reference
import transformers_models
from program import expect, run_ok
from reference import Mesh
from shards import assert_shards

MESHES = [Mesh(1, 1), Mesh(1, 3), Mesh(1, 2, 2)]


@pytest.fixture(scope="module")
def text_store(mini, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.h5"
    run_ok("load", mini, "--text-only", "--store", path, ranks=2)
    return path


def without_vision(tensors):
    return {key: value for key, value in tensors.items() if not key.startswith("model.visual.")}


def assert_holds(folder, tensors):
    wrong = reference.differences(tensors, reference.read_folder(folder))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_rules32_43_every_rank_holds_the_language_model_under_its_own_names(mini, mini_tensors, mesh, tmp_path):
    options = ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard, "--save-shards", tmp_path / "shards"]
    run_ok("load", mini, "--text-only", *options, ranks=mesh.ranks)
    assert_shards(tmp_path / "shards", mini_tensors, mesh, reference.Model.of(mini, text_only=True))
    run_ok("to-hf", tmp_path / "shards", tmp_path / "out", ranks=2)
    assert_holds(tmp_path / "out", without_vision(mini_tensors))


def test_rule43_names_are_those_of_the_text_model_in_transformers(made_by_transformers, tmp_path):
    """Which of its parameters are called otherwise in training, the rules say."""
    from transformers import Qwen3_5MoeForCausalLM

    model, ckpt = made_by_transformers
    run_ok("load", ckpt, "--text-only", "--save-shards", tmp_path / "shards")
    held = reference.read_file(tmp_path / "shards" / "rank-00000.safetensors").keys()
    text_model = Qwen3_5MoeForCausalLM(model.config.text_config)
    renamed = {"gate_up_proj": "gate_and_up_projs", "experts.down_proj": "experts.down_projs"}
    renamed |= {".shared_expert.": ".shared_experts.", ".A_log": "._fp32_params.A_log"}
    renamed |= {".dt_bias": "._fp32_params.dt_bias"}
    expected = set()
    for name, _ in text_model.named_parameters():
        for hf, native in renamed.items():
            name = name.replace(hf, native)
        expected.add(name)
    assert held == expected


def test_rule43_a_store_remembers_its_names_and_gives_the_sources_back(mini, mini_tensors, text_store, tmp_path):
    run_ok("verify", text_store, "--against", mini, "--text-only", ranks=2)
    report = run_ok("to-hf", text_store, tmp_path / "out", "--json", ranks=3).json
    assert report["family"] == "qwen3_5_moe_text"
    assert report["headers"]["origin"] == "selection"
    assert_holds(tmp_path / "out", without_vision(mini_tensors))


def test_rule43_every_command_takes_the_part_that_is_asked_for(mini, mini_tensors, tmp_path):
    expected = sum(value.nbytes for value in without_vision(mini_tensors).values())
    assert run_ok("inspect", mini, "--text-only", "--json").json["bytes"] == expected
    assert run_ok("plan", mini, "--ranks", 1, "--text-only", "--json").json["bytes"]["read"] == expected
    assert run_ok("verify", mini, "--text-only", "--json").json["verify"]["tensors"] == len(
        without_vision(mini_tensors)
    )
    run_ok("to-hf", mini, tmp_path / "out", "--text-only", ranks=2)
    assert_holds(tmp_path / "out", without_vision(mini_tensors))


def test_rule43_names_that_were_saved_stay(mini_store, tmp_path):
    expect(2, "load", mini_store, "--text-only", says="was saved as a whole model, and keeps its names")


def test_rule43_two_keys_of_one_name_are_refused(broken):
    key, other = "model.language_model.norm.weight", "model.norm.weight"
    checkpoints.add_tensor(broken, key, other, reference.read_folder(broken)[key])
    run_ok("inspect", broken)
    expect(65, "load", broken, "--text-only", says=other)


def test_rule43_qwen3_vl_moe_has_a_language_model_too(transformers, tmp_path):
    ckpt, mesh = tmp_path / "ckpt", Mesh(1, 2)
    transformers_models.save_qwen3_vl(ckpt)
    tensors = reference.read_folder(ckpt)
    run_ok("load", ckpt, "--text-only", "--save-shards", tmp_path / "shards", ranks=2)
    assert_shards(tmp_path / "shards", tensors, mesh, reference.Model.of(ckpt, text_only=True))
    run_ok("to-hf", tmp_path / "shards", tmp_path / "out")
    assert_holds(tmp_path / "out", without_vision(tensors))
