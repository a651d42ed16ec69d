"""Training jobs of several ranks: their state dicts, written as the checkpoints that transformers opens."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "system"))

import checkpoints  # noqa: E402
import reference  # noqa: E402
import transformers_models  # noqa: E402

FAMILIES = ["qwen3_5_moe", "qwen3_vl_moe"]
TRAINED = ["expert_parallel", "fsdp", "fsdp_filled", "master_weights", "replicated", "replicated_assigned"]
UNTOUCHED = ["loaded", "tensor_parallel"]
STAGES = ["stage_0", "stage_1"]


@pytest.fixture(scope="module", params=[2, 4], ids="{}-ranks".format)
def exported(request, saved_models, torchrun, tmp_path_factory):
    """family -> the folder of what several ranks exported of its model."""
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    arguments = [path for family in FAMILIES for path in (saved_models[family][1], folders[family])]
    torchrun(request.param, "train_and_export.py", *arguments)
    return folders


@pytest.fixture(params=FAMILIES)
def trained(request, saved_models, exported):
    """What several ranks trained and exported: the model as it was, its checkpoint, and the folder of exports."""
    return *saved_models[request.param], exported[request.param]


@pytest.mark.parametrize("way", UNTOUCHED)
def test_what_nobody_changed_comes_back_byte_for_byte(trained, way):
    _, ckpt, out = trained
    assert not checkpoints.folder_differences(ckpt, out / way)


def test_what_belongs_to_no_checkpoint_is_written_with_fresh_headers(trained):
    _, ckpt, out = trained
    expected, found = reference.read_folder(ckpt), reference.read_folder(out / "without_source")
    assert found.keys() == expected.keys()
    assert not any(reference.difference(expected[key], found[key]) for key in found)


def test_each_pipeline_stage_writes_its_own_part(trained):
    _, ckpt, out = trained
    whole = reference.read_folder(ckpt)
    parts = [reference.read_folder(out / stage) for stage in STAGES]
    assert all(parts)
    assert sorted(key for part in parts for key in part) == sorted(whole)
    assert not any(reference.difference(whole[key], value) for part in parts for key, value in part.items())


@pytest.mark.parametrize("way", TRAINED)
def test_transformers_finds_the_trained_model_in_the_export(trained, way):
    model, ckpt, out = trained
    kept = torch.load(out / f"{way}.pt")
    again = type(model).from_pretrained(out / way, dtype=torch.bfloat16).eval()
    found = dict(again.named_parameters())
    expected = {name: value.bfloat16() for name, value in kept["tensors"].items()}  # rule 57: A_log is held in float32
    assert found.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert torch.equal(transformers_models.logits(again), kept["logits"])
    before = dict(model.named_parameters())
    experts = [name for name in found if ".mlp.experts." in name]
    assert experts
    assert [name for name in experts if torch.equal(found[name], before[name])] == []  # else nothing was trained


@pytest.mark.parametrize("way", TRAINED)
def test_a_trained_export_has_the_headers_and_side_files_of_its_source(trained, way):
    _, ckpt, out = trained
    differing = {Path(line.split(":")[0]).suffix for line in checkpoints.folder_differences(ckpt, out / way)}
    assert differing == {".safetensors"}
    places = checkpoints.differing_bytes(ckpt, out / way)
    assert places
    for name, offset in places:
        assert offset >= header_size(ckpt / name), name


def header_size(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def test_nothing_else_is_left_where_exports_were_written(trained):
    _, _, out = trained
    expected = [*UNTOUCHED, *TRAINED, *STAGES, "without_source", *(f"{way}.pt" for way in TRAINED)]
    assert sorted(path.name for path in out.iterdir()) == sorted(expected)
