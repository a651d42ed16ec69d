"""Rule 25 in both families and every form of checkpoint: names are those of the Hugging Face checkpoint, matched at
their start; what is chosen is loaded, proved and exported as if there were nothing else."""

import json
import re

import pytest
import safetensors.torch
import torch

import checkpoints
import reference
from program import expect, run_ok
from reference import Mesh
from shards import assert_shards
from variants import Variant

LAYER = r"model\.language_model\.layers"


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    return Variant("qwen3_5_moe").write(tmp_path_factory.mktemp("stacked") / "ckpt")


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    variant = Variant("qwen3_5_moe", experts=3, split_decoder=True, split_mtp=True)
    return variant.write(tmp_path_factory.mktemp("split") / "ckpt")


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return Variant("qwen3_vl_moe", layout="transformers").write(tmp_path_factory.mktemp("vision") / "ckpt")


def chosen(tensors, include, exclude):
    """Rule 25: the pattern has to match at the start of the name, but not to its end."""
    return {
        key: value
        for key, value in tensors.items()
        if (not include or re.match(include, key)) and not (exclude and re.match(exclude, key))
    }


def options(include, exclude):
    return [*(["--include", include] if include else []), *(["--exclude", exclude] if exclude else [])]


SELECTIONS = {  # include, exclude
    "a pipeline stage": (rf"model\.language_model\.embed_tokens|{LAYER}\.[01]\.", ""),
    "no vision": ("", r"model\.visual\."),
    "no experts": ("", r".*\.mlp\.experts\."),
    "experts only": (r".*\.mlp\.experts\.", ""),
    "some experts": (rf"{LAYER}\.1\.mlp\.experts\.", ""),
    "a stage without its gate": (rf"{LAYER}\.1\.", r".*\.mlp\.gate\."),
    "the beginning is enough": ("mod", ""),
    "only the beginning counts": ("", r"language_model|visual|weight|a|experts"),
    "all of it": (".*", ""),
    "nothing excluded": ("", ""),
}


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("which", ["stacked", "split", "vision"])
def test_rule25_the_shards_hold_what_is_chosen(which, selection, request, tmp_path):
    ckpt, mesh = request.getfixturevalue(which), Mesh(1, 2)
    include, exclude = SELECTIONS[selection]
    tensors = chosen(reference.read_folder(ckpt), include, exclude)
    assert tensors
    shards, report = tmp_path / "shards", tmp_path / "report.json"
    run_ok("load", ckpt, *options(include, exclude), "--save-shards", shards, "--report", report, ranks=mesh.ranks)
    model = reference.Model.of(ckpt)
    assert_shards(shards, tensors, mesh, model)
    assert_report(json.loads(report.read_text()), tensors, mesh, model)


def assert_report(report, tensors, mesh, model):
    """Coverage is proved of the selection: every tensor of it, every expert of it, nothing else."""
    assert (report["verify"]["level"], report["verify"]["mismatches"]) == ("full", [])
    assert report["verify"]["tensors"] == len(reference.global_state(tensors, model))
    for entry in report["rank"]:
        held = reference.local_state(tensors, mesh, entry["rank"], model)
        assert entry["bytes_owned"] == sum(value.nbytes for value in held.values())
        assert entry["bytes_wanted"] == reference.bytes_wanted(tensors, mesh, entry["rank"], model)


def test_rule25_the_hf_name_counts_not_the_native_one(stacked, tmp_path):
    """Natively, `mtp.fc.weight` is `mtp.layers.0.eh_proj.weight`."""
    eh_proj = "mtp.layers.0.eh_proj.weight"
    for pattern, stays in ((r"mtp\.fc", False), (r"mtp\.layers", True)):
        shards = tmp_path / f"without-{pattern[-2:]}"
        run_ok("load", stacked, "--exclude", pattern, "--save-shards", shards)
        assert (eh_proj in reference.read_file(shards / "rank-00000.safetensors")) == stays


def test_selections_and_ep_shard_go_together(vision, tmp_path):  # rules 14, 25
    mesh, include = Mesh(1, 3, 2), r".*layers\.1\."
    ep = ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard]
    run_ok("load", vision, *ep, "--include", include, "--save-shards", tmp_path / "shards", ranks=mesh.ranks)
    tensors = chosen(reference.read_folder(vision), include, "")
    assert_shards(tmp_path / "shards", tensors, mesh, reference.Model.of(vision))


def test_the_stages_of_a_pipeline_are_the_checkpoint(stacked, tmp_path):
    """Two selections that are each other's complement: together every tensor once."""
    pattern = rf"{LAYER}\.[01]\.|model\.visual"
    names = []
    for n, choice in enumerate((["--include", pattern], ["--exclude", pattern])):
        run_ok("load", stacked, *choice, "--save-shards", tmp_path / f"stage{n}", ranks=2)
        names += reference.read_file(tmp_path / f"stage{n}" / "rank-00001.safetensors")
    assert sorted(names) == sorted(reference.global_state(reference.read_folder(stacked)))


def test_a_plan_of_a_selection_is_what_its_load_does(stacked):
    choice = ["--include", rf"{LAYER}\.2\.", "--ep", 2, "--ep-shard", 2]
    planned = run_ok("plan", stacked, "--ranks", 4, *choice, "--json").json
    loaded = run_ok("load", stacked, *choice, "--json", ranks=4).json
    for plan, load in zip(planned["rank"], loaded["rank"], strict=True):
        for name in ("bytes_read", "bytes_wanted", "bytes_owned"):
            assert plan[name] == load[name]


def test_files_without_chosen_tensors_are_not_needed_for_their_values(stacked, tmp_path):
    """A selection reads nothing of the other tensors: the report counts the chosen ones alone."""
    include = r"lm_head"
    report = run_ok("load", stacked, "--include", include, "--json", ranks=2).json
    size = reference.read_folder(stacked)["lm_head.weight"].nbytes
    assert [entry["bytes_read"] for entry in report["rank"]] == [size, size]


@pytest.mark.parametrize("part", ["gate_proj", "down_proj"])
def test_rule42_half_an_expert_is_not_loaded(part, split, tmp_path):
    """gate and up are one native tensor; a selection that takes one of them would leave a hole in it."""
    kept = part == "down_proj"  # down is a native tensor of its own
    command = ["load", split, "--include", rf".*\.mlp\.experts\.\d+\.{part}", "--save-shards", tmp_path / "shards"]
    if kept:
        run_ok(*command)
        state = reference.read_file(tmp_path / "shards" / "rank-00000.safetensors")
        expected = reference.global_state(reference.read_folder(split))
        down = {name: value for name, value in expected.items() if name.endswith(".mlp.experts.down_projs")}
        assert not reference.differences(down, state)
    else:
        expect(2, *command, says="up_proj")
        assert not (tmp_path / "shards").exists()


# Exports of a selection ---------------------------------------------------------------------------------------------


def file_by_safetensors(tensors, path):
    """The bytes of the file that safetensors' own writer makes: it orders by dtype, then name, and pads the header."""
    names = {"BF16": torch.bfloat16, "F32": torch.float32}
    as_torch = {
        key: torch.from_numpy(value.bits.view(f"<i{value.bits.itemsize}").copy()).view(names[value.dtype])
        for key, value in tensors.items()
    }
    safetensors.torch.save_file(as_torch, path, {"format": "pt"})
    return path.read_bytes()


EXCLUDED = r"mtp\.|model\.visual|.*layers\.0\.mlp\.experts"


@pytest.mark.parametrize("source", ["ckpt", "s.h5", "shards"])
@pytest.mark.parametrize("which", ["stacked", "split", "vision"])
def test_rule25_an_export_leaves_out_what_is_excluded(which, source, request, tmp_path):
    """Its file is the one that safetensors makes of the other tensors, by their names and axes in the source."""
    ckpt = request.getfixturevalue(which)
    if source == "ckpt":
        exported = ckpt
    else:
        exported, option = tmp_path / source, "--store" if source == "s.h5" else "--save-shards"
        run_ok("load", ckpt, option, exported, "--ep-shard", 2, ranks=4)
    run_ok("to-hf", exported, tmp_path / "out", "--exclude", EXCLUDED, ranks=2)
    tensors = chosen(reference.read_folder(ckpt), "", EXCLUDED)
    assert 0 < len(tensors) < len(reference.read_folder(ckpt))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert (file.name, list((tmp_path / "out").glob("*.index.json"))) == ("model.safetensors", [])
    assert file.read_bytes() == file_by_safetensors(tensors, tmp_path / "expected.safetensors")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (ckpt / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("option", ["--store", "--save-shards"])
@pytest.mark.parametrize("which", ["stacked", "split", "vision"])
def test_what_holds_a_selection_is_exported_as_a_checkpoint(which, option, request, tmp_path):
    ckpt = request.getfixturevalue(which)
    run_ok("load", ckpt, "--exclude", EXCLUDED, option, tmp_path / "held", ranks=2)
    run_ok("to-hf", tmp_path / "held", tmp_path / "out", ranks=3)
    tensors = chosen(reference.read_folder(ckpt), "", EXCLUDED)
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert file.read_bytes() == file_by_safetensors(tensors, tmp_path / "expected.safetensors")


def test_an_export_without_a_choice_is_the_source(stacked, tmp_path):
    run_ok("to-hf", stacked, tmp_path / "out", "--include", ".*", ranks=2)
    assert not checkpoints.folder_differences(stacked, tmp_path / "out")


def test_rule25_each_tensor_of_an_expert_is_chosen_by_itself_on_the_way_out(split, tmp_path):
    run_ok("to-hf", split, tmp_path / "out", "--exclude", r".*experts\.1\.up_proj", ranks=2)
    kept = reference.read_folder(tmp_path / "out")
    left_out = reference.read_folder(split).keys() - kept.keys()
    assert len(left_out) == 5 and all(".experts.1.up_proj." in key for key in left_out)
    assert not reference.differences(chosen(reference.read_folder(split), "", r".*experts\.1\.up_proj"), kept)
