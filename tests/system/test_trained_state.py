"""State dicts without a source: what huggingface_hub, safetensors and transformers say of their exports."""

import json
import os
import subprocess

import huggingface_hub
import pytest
import safetensors.torch
import torch

import reference
from program import run_ok

LIMIT = 100_000  # tensor bytes of a file


def export(source, out, limit):
    subprocess.run([os.environ["TRAINED_STATE_PROGRAM"], source, out, str(limit)], check=True)
    return out


def read(folder):
    tensors = {}
    for path in reference.shard_files(folder):
        tensors |= safetensors.torch.load_file(path)
    return tensors


@pytest.fixture(scope="module")
def exported(made_by_transformers, tmp_path_factory):
    _, source = made_by_transformers
    return source, export(source, tmp_path_factory.mktemp("trained") / "out", LIMIT)


def test_every_value_is_what_was_held(exported):
    source, out = exported
    before, after = read(source), read(out)
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert after[key].dtype == torch.float32, key
        assert torch.equal(after[key], 2 * value.float()), key


def test_the_files_are_those_of_huggingface_hub(exported, tmp_path):
    _, out = exported
    index = json.loads((out / "model.safetensors.index.json").read_text())
    tensors = read(out)
    in_order = {key: tensors[key] for key in index["weight_map"]}
    huggingface_hub.save_torch_state_dict(in_order, tmp_path, max_shard_size=LIMIT)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert len(made) > 3
    assert made == sorted(path.name for path in out.glob("model*"))
    for name in made:
        assert (out / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_single_file_is_that_of_huggingface_hub(made_by_transformers, tmp_path):
    _, source = made_by_transformers
    out = export(source, tmp_path / "out", 5_000_000_000)
    (tmp_path / "hub").mkdir()
    huggingface_hub.save_torch_state_dict(read(out), tmp_path / "hub")
    assert [path.name for path in out.glob("model*")] == ["model.safetensors"]
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "hub" / "model.safetensors").read_bytes()


def test_transformers_opens_it(made_by_transformers, exported):
    from transformers import Qwen3_5MoeForConditionalGeneration

    model, _ = made_by_transformers
    _, out = exported
    again, info = Qwen3_5MoeForConditionalGeneration.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    expected = {name: 2 * value.float() for name, value in model.named_parameters()}
    found = dict(again.named_parameters())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_it_is_a_checkpoint_like_any_other(exported, tmp_path):
    _, out = exported
    run_ok("load", out, "--store", tmp_path / "again.h5", ranks=3)
    run_ok("to-hf", tmp_path / "again.h5", tmp_path / "back")
    for path in out.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name
