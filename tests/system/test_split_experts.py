"""Experts with one tensor per projection (rules 5 and 5a): what is missing, doubled or does not fit is named, a wrong
value is traced to its expert, and a changed one goes home alone."""

import json
import re

import numpy as np
import pytest

import checkpoints
import reference
from checkpoints import HIDDEN, INTERMEDIATE, edit_header, edit_json, file_of
from program import expect, run, run_ok
from reference import Mesh
from shards import assert_shards, shard_path
from variants import Variant

EXPERTS = 6
SPLIT = Variant("qwen3_5_moe", experts=EXPERTS, split_decoder=True, split_mtp=True, odd=True)
MODULES = {"decoder": "model.language_model.layers.2.mlp.experts", "mtp": "mtp.layers.0.mlp.experts"}

both_modules = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())


@pytest.fixture
def ckpt(tmp_path):
    return SPLIT.write(tmp_path / "ckpt")


def refused(ckpt, says):
    """While opening, so by every kind of run."""
    return expect(65, "load", ckpt, "--rank", 0, "--ranks", 2, says=says)


# What is missing, doubled or does not fit ---------------------------------------------------------------------------


@both_modules
@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_rules40_41_42_a_missing_projection_is_named(part, module, ckpt):
    key = f"{module}.3.{part}_proj.weight"
    checkpoints.remove_tensor(ckpt, key)
    refused(ckpt, says=key)


@both_modules
@pytest.mark.parametrize("expert", [0, EXPERTS - 1])
def test_rule42_a_missing_expert_is_named(expert, module, ckpt):
    """Upstream makes a smaller tensor of the others."""
    keys = [f"{module}.{expert}.{part}_proj.weight" for part in ("gate", "up", "down")]
    for key in keys:
        checkpoints.remove_tensor(ckpt, key)
    assert any(key in refused(ckpt, says="").stderr for key in keys)


@both_modules
def test_rule42_an_expert_too_many_is_named(module, ckpt):
    tensors = reference.read_folder(ckpt)
    for part in ("gate", "up", "down"):
        old, new = (f"{module}.{expert}.{part}_proj.weight" for expert in (0, EXPERTS))
        checkpoints.add_tensor(ckpt, old, new, tensors[old])
    refused(ckpt, says=[f"{module}.{EXPERTS}.", str(EXPERTS)])


@both_modules
def test_an_expert_number_has_one_spelling(module, ckpt):
    old, new = f"{module}.1.up_proj.weight", f"{module}.01.up_proj.weight"
    checkpoints.add_tensor(ckpt, old, new, reference.read_folder(ckpt)[old])
    refused(ckpt, says=new)


@both_modules
def test_rule42_another_shape_is_named(module, ckpt):
    key = f"{module}.4.down_proj.weight"
    edit_header(file_of(ckpt, key), lambda header: header | {key: header[key] | {"shape": [INTERMEDIATE, HIDDEN]}})
    refused(ckpt, says=[key, f"[{HIDDEN}, {INTERMEDIATE}]", f"[{INTERMEDIATE}, {HIDDEN}]"])


@both_modules
@pytest.mark.parametrize("part", ["up", "down"])
def test_experts_of_different_dtypes_make_no_tensor(part, module, ckpt):
    key = f"{module}.4.{part}_proj.weight"
    checkpoints.replace_tensor(ckpt, key, reference.Tensor("F16", reference.read_folder(ckpt)[key].bits))
    refused(ckpt, says=[key, "F16", "BF16"])


@both_modules
def test_rules26_27_stacked_and_split_experts_of_one_layer_collide(module, ckpt):
    stacked = reference.Tensor("BF16", np.zeros((EXPERTS, 2 * INTERMEDIATE, HIDDEN), "<u2"))
    checkpoints.add_tensor(ckpt, f"{module}.0.up_proj.weight", f"{module}.gate_up_proj", stacked)
    refused(ckpt, says=[f"{module}.gate_up_proj", f"{module}."])


# Where a wrong value is ---------------------------------------------------------------------------------------------


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@both_modules
@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_a_flipped_bit_is_traced_to_layer_and_expert(part, module, ckpt, tmp_path):
    run_ok("load", ckpt, "--store", tmp_path / "s.h5")
    key = f"{module}.4.{part}_proj.weight"
    file, begin, end = reference.extents(ckpt)[key]
    flip(ckpt / file, (begin + end) // 2)
    result = expect(3, "verify", ckpt, "--against", tmp_path / "s.h5", says="expert 4", ranks=2)
    assert re.search(rf"layer {module.split('.')[-3]}\b", result.stderr), result.stderr
    report = run("verify", ckpt, "--against", tmp_path / "s.h5", "--json").json
    assert [mismatch["expert"] for mismatch in report["verify"]["mismatches"]] == [4]


@both_modules
def test_two_exchanged_experts_are_both_named(module, ckpt, tmp_path):
    run_ok("load", ckpt, "--store", tmp_path / "s.h5")
    names = [f"{module}.{expert}.down_proj.weight" for expert in (1, 4)]
    other = dict(zip(names, reversed(names), strict=True))
    for path in {file_of(ckpt, name) for name in names}:
        edit_header(path, lambda header: {other.get(name, name): entry for name, entry in header.items()})
    files = {name: path.name for path in reference.shard_files(ckpt) for name in reference.read_file(path)}
    edit_json(ckpt / checkpoints.INDEX, lambda index: index.update(weight_map=files))
    report = run("verify", ckpt, "--against", tmp_path / "s.h5", "--json").json
    assert sorted(mismatch["expert"] for mismatch in report["verify"]["mismatches"]) == [1, 4]


# Changed values go home alone ---------------------------------------------------------------------------------------


def change_element(path, name, at):
    """Change one element of a tensor in a rank's file, as a training script would."""
    header = reference.raw_header(path)
    begin, _ = json.loads(header[8:])[name]["data_offsets"]
    value = reference.read_file(path)[name]
    flip(path, len(header) + begin + int(np.ravel_multi_index(at, value.shape)) * value.bits.itemsize)


CHANGED = [
    (SPLIT, "mtp.layers.0.mlp.experts.gate_and_up_projs", (0, 3, INTERMEDIATE + 5)),  # in an up projection
    (SPLIT, "model.language_model.layers.1.mlp.experts.down_projs", (1, 5, 9)),
    (Variant("qwen3_vl_moe", layout="hub"), "model.language_model.layers.1.mlp.experts.down_projs", (1, 5, 9)),
    (
        Variant("qwen3_vl_moe", layout="transformers", odd=True),
        "model.language_model.layers.0.mlp.experts.gate_and_up_projs",
        (0, 7, 3),
    ),
]


@pytest.mark.parametrize(("variant", "name", "at"), CHANGED, ids=lambda value: str(value).replace(" ", ""))
def test_one_changed_element_of_an_ep_shard_changes_exactly_its_bytes(variant, name, at, tmp_path):  # rules 14, 45, 46
    ckpt, mesh, rank = variant.write(tmp_path / "ckpt"), Mesh(1, 2, 2), 3
    model, shards, out = reference.Model.of(ckpt), tmp_path / "shards", tmp_path / "out"
    run_ok("load", ckpt, "--ep", mesh.ep, "--ep-shard", mesh.ep_shard, "--save-shards", shards, ranks=mesh.ranks)
    change_element(shard_path(shards, rank), name, at)
    run_ok("to-hf", shards, out, ranks=2)
    assert len(checkpoints.differing_bytes(ckpt, out)) == 1
    expected = reference.global_state(reference.read_folder(ckpt), model)
    found = reference.global_state(reference.read_folder(out), model)
    (different,) = [key for key in expected if reference.difference(expected[key], found[key])]
    assert different == name
    box = reference.local_box(name, expected[name].shape, mesh, rank)
    (place,) = np.argwhere(expected[name].bits != found[name].bits)
    assert place.tolist() == [part.start + local for part, local in zip(box, at, strict=True)]


def test_a_folder_that_lacks_an_ep_shard_is_refused(ckpt, tmp_path):
    shards = tmp_path / "shards"
    run_ok("load", ckpt, "--ep", 2, "--ep-shard", 2, "--save-shards", shards, ranks=4)
    shard_path(shards, 2).unlink()
    expect(66, "to-hf", shards, tmp_path / "out", says="rank-00002")
    assert not (tmp_path / "out").exists()


def test_an_export_is_a_checkpoint_to_load(ckpt, tmp_path):
    run_ok("load", ckpt, "--ep", 3, "--ep-shard", 2, "--store", tmp_path / "s.h5", ranks=6)
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "out", ranks=3)
    run_ok("load", tmp_path / "out", "--save-shards", tmp_path / "shards", ranks=2)
    assert_shards(tmp_path / "shards", reference.read_folder(ckpt), Mesh(1, 2))
