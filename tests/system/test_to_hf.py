"""`to-hf` gives the Hugging Face checkpoint back byte for byte, from every form that the program writes."""

import json
import shutil

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch

import checkpoints
import reference
from program import expect, leftovers, run_ok


def assert_same_folder(source, out):
    wrong = checkpoints.folder_differences(source, out)
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def tiny_store(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "tiny.h5"
    run_ok("load", tiny, "--store", path, ranks=2)
    return path


@pytest.fixture(scope="module")
def mini_shards(mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini_shards") / "shards"
    run_ok("load", mini, "--save-shards", folder, ranks=4)
    return folder


@pytest.mark.parametrize("ranks", [None, 1, 2, 3])
def test_from_a_store(tiny, tiny_store, ranks, tmp_path):
    run_ok("to-hf", tiny_store, tmp_path / "out", ranks=ranks)
    assert_same_folder(tiny, tmp_path / "out")
    assert not leftovers(tmp_path / "out")


@pytest.mark.parametrize("ranks", [None, 3])
def test_from_a_checkpoint(tiny, ranks, tmp_path):
    run_ok("to-hf", tiny, tmp_path / "out", ranks=ranks)
    assert_same_folder(tiny, tmp_path / "out")


@pytest.mark.parametrize("ranks", [None, 3, 4])
def test_from_a_folder_of_shards(mini, mini_shards, ranks, tmp_path):
    run_ok("to-hf", mini_shards, tmp_path / "out", ranks=ranks)
    assert_same_folder(mini, tmp_path / "out")


def test_from_the_shards_of_replicas(mini, tmp_path):
    run_ok("load", mini, "--ep", 2, "--save-shards", tmp_path / "shards", ranks=4)
    run_ok("to-hf", tmp_path / "shards", tmp_path / "out", ranks=2)
    assert_same_folder(mini, tmp_path / "out")


def test_side_files_with_awkward_names_come_back_from_a_store(mini, mini_store, tmp_path):
    run_ok("to-hf", mini_store, tmp_path / "out", ranks=2)
    assert_same_folder(mini, tmp_path / "out")
    assert (tmp_path / "out" / "empty.txt").exists()


def test_the_bf16_a_log_of_transformers_stays_bf16(made_by_transformers, tmp_path):  # rules 5a, 57
    """The state dict holds it in F32; the way home restores the source's dtype."""
    model, ckpt = made_by_transformers
    run_ok("load", ckpt, "--store", tmp_path / "s.h5", ranks=2)
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "out", ranks=3)
    assert_same_folder(ckpt, tmp_path / "out")


CHANGED = "model.language_model.layers.1.mlp.experts.gate_and_up_projs"


def change_one_element(shard, local_expert, row, column):
    """Rewrite a rank's file with one other element, as a training script would. Returns the new bits."""
    with safetensors.safe_open(shard, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    element = tensors[CHANGED].view(dtype=torch.int16)[local_expert, row, column]
    element ^= 0x5A5A
    safetensors.torch.save_file(tensors, shard, metadata)
    return int(element) & 0xFFFF


@pytest.mark.parametrize("ranks", [None, 2])
def test_one_changed_element_changes_exactly_its_bytes(mini, mini_shards, mini_tensors, ranks, tmp_path):
    shards = checkpoints.copy(mini_shards, tmp_path / "shards")
    rank, local_expert, row, column = 1, 1, 5, 7  # rank 1 of 4 owns experts 2 and 3 of 6
    bits = change_one_element(shards / f"rank-{rank:05}.safetensors", local_expert, row, column)
    run_ok("to-hf", shards, tmp_path / "out", ranks=ranks)

    key = "model.language_model.layers.1.mlp.experts.gate_up_proj"
    file, begin, _ = reference.extents(mini)[key]
    at = np.ravel_multi_index((2 + local_expert, column, row), mini_tensors[key].shape)  # axes 1 and 2 exchanged
    first = begin + 2 * int(at)
    assert checkpoints.differing_bytes(mini, tmp_path / "out") == [(file, first), (file, first + 1)]
    assert (tmp_path / "out" / file).read_bytes()[first : first + 2] == bits.to_bytes(2, "little")


def test_a_folder_that_lacks_a_rank_is_refused(mini_shards, tmp_path):
    shards = checkpoints.copy(mini_shards, tmp_path / "shards")
    (shards / "rank-00002.safetensors").unlink()
    result = expect(66, "to-hf", shards, tmp_path / "out", says="rank-00002")
    assert not (tmp_path / "out").exists(), result.stderr


def test_an_existing_output_is_kept(mini, mini_store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    expect(73, "to-hf", mini_store, out, says=out)
    assert [p.name for p in out.iterdir()] == ["precious.txt"]
    assert not leftovers(out)


def test_an_existing_output_is_replaced_as_a_whole_when_asked(mini, mini_store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old.txt").write_text("old")
    run_ok("to-hf", mini_store, out, "--overwrite", ranks=2)
    assert_same_folder(mini, out)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_output_folder_is_filled(mini, mini_store, tmp_path):
    (tmp_path / "out").mkdir()
    run_ok("to-hf", mini_store, tmp_path / "out")
    assert_same_folder(mini, tmp_path / "out")


def test_an_output_that_is_a_file_is_kept(mini_store, tmp_path):
    (tmp_path / "out").write_text("mine")
    expect(73, "to-hf", mini_store, tmp_path / "out", "--overwrite")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.fixture
def orphaned(mini, tmp_path):
    """A folder of shards whose source has moved: (shards, where the source is now)."""
    source = checkpoints.copy(mini, tmp_path / "source")
    run_ok("load", source, "--save-shards", tmp_path / "shards", ranks=2)
    shutil.move(source, tmp_path / "moved")
    return tmp_path / "shards", tmp_path / "moved"


def test_shards_without_their_source_get_fresh_headers(orphaned, mini_tensors, tmp_path):
    shards, _ = orphaned
    result = run_ok("to-hf", shards, tmp_path / "out", "--json", ranks=2)
    for words in [str(tmp_path / "source"), "--source", "fresh", "config.json"]:
        assert words in result.stderr
    assert result.json["headers"] == {"origin": "state", "fresh_because": "there is no checkpoint to take them from"}
    found = reference.read_folder(tmp_path / "out")
    wrong = reference.differences(mini_tensors, found)
    assert not wrong, "\n".join(wrong)


def test_shards_whose_source_has_changed_are_refused(orphaned, tmp_path):
    shards, moved = orphaned
    shutil.copytree(moved, tmp_path / "source")
    index = tmp_path / "source" / "model.safetensors.index.json"
    index.write_text(index.read_text() + "\n")
    expect(66, "to-hf", shards, tmp_path / "out", says=["has changed", "--source"])
    run_ok("to-hf", shards, tmp_path / "out", "--source", tmp_path / "source")


def test_a_source_that_is_a_folder_of_shards_is_refused(orphaned, mini_shards, tmp_path):
    shards, _ = orphaned
    expect(2, "to-hf", shards, tmp_path / "out", "--source", mini_shards, says="is a folder of shards itself")


@pytest.mark.parametrize("kind", ["checkpoint", "store"])
def test_a_source_can_be_given(orphaned, kind, mini, mini_store, tmp_path):
    shards, moved = orphaned
    run_ok("to-hf", shards, tmp_path / "out", "--source", moved if kind == "checkpoint" else mini_store, ranks=2)
    assert_same_folder(mini, tmp_path / "out")


def test_a_source_that_is_another_checkpoint_is_refused(orphaned, tmp_path):
    shards, _ = orphaned
    other = checkpoints.write_mini(tmp_path / "other", experts=4)
    result = expect(65, "to-hf", shards, tmp_path / "out", "--source", other)
    assert not (tmp_path / "out").exists(), result.stderr


def test_the_report_of_an_export(mini, tmp_path):
    result = run_ok("to-hf", mini, tmp_path / "out", "--json", ranks=2)
    report = json.loads(result.stdout)
    assert (report["schema"], report["command"], report["ok"]) == ("rankslice.report/1", "to-hf", True)
    assert report["ranks"] == 2 and report["seconds"]["to_hf"] > 0
