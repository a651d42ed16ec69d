"""What is said of tensors that are, and that are not, what their checkpoint says."""

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch

import rankslice

sys.path.append(str(Path(__file__).resolve().parents[1] / "system"))
import checkpoints  # noqa: E402
import transformers_models  # noqa: E402

EXPERTS = "model.language_model.layers.1.mlp.experts"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A Qwen3.5-MoE that transformers made: 6 experts in each of 4 layers."""
    folder = tmp_path_factory.mktemp("saved") / "ckpt"
    return transformers_models.save_qwen3_5(folder), folder


@pytest.fixture(scope="module")
def ckpt(saved):
    return saved[1]


@pytest.fixture(scope="module")
def verified(ckpt, torchrun, tmp_path_factory):
    """What two ranks found in states of every kind."""
    out = tmp_path_factory.mktemp("verified")
    torchrun(2, "verifying.py", ckpt, out)
    return json.loads((out / "reports.json").read_text())


def test_every_rank_has_the_same_report(verified):
    assert [name for name, report in verified["reports"].items() if not report["same"]] == []


AS_READ = [
    "loaded",
    "loaded by each rank alone",
    "parts of a mesh",
    "reread",
    "against",
    "of a source",
    "of a model",
    "of an FSDP model",
    "flipped, coverage",
]


@pytest.mark.parametrize("what", AS_READ)
def test_what_is_as_it_was_read_passes(verified, what):
    report = verified["reports"][what]
    assert report["mismatches"] == []
    assert report["experts"] == 4 * 2 * 6  # layers, gate_up and down, experts


def test_the_report_says_what_was_compared_with(verified):
    reports = verified["reports"]
    assert [reports[name]["reference"] for name in ("loaded", "reread", "against")] == ["none", "reread", "against"]
    assert reports["reread"]["reread"]["another_rank"]
    assert reports["loaded"]["reread"] is None


@pytest.mark.parametrize("what", ["flipped", "flipped, of a source"])
def test_a_flipped_bit_is_found_by_tensor_and_expert(verified, what):
    (mismatch,) = verified["reports"][what]["mismatches"]
    assert (mismatch["tensor"], mismatch["expert"], mismatch["rank"]) == (f"{EXPERTS}.down_proj", 4, 1)


def test_flipped_bits_of_an_fsdp_model_are_found_by_tensor_and_expert(verified):
    found = {(m["tensor"], m["expert"]) for m in verified["reports"]["flipped in an FSDP model"]["mismatches"]}
    assert found == {(f"{EXPERTS}.gate_up_proj", 5), ("model.language_model.norm.weight", None)}


def test_verify_raises_on_every_rank_and_hands_over_the_report(verified):
    first, second = verified["raised"]
    assert first == second
    assert first["tensor"] == f"{EXPERTS}.down_proj"
    assert "expert 4" in first["message"]
    assert first["mismatches"] == 1


# One process, without torch.distributed ------------------------------------------------------------------------------


def test_one_rank_of_many_proves_what_it_holds(ckpt):
    state = rankslice.load(ckpt, rank=2, world_size=4)
    report = rankslice.verify(state)
    assert report.ok
    assert report.experts == 4 * 2 * 1  # rule 9: 6 experts on 4 ranks are 2, 2, 1, 1
    name = f"{EXPERTS}.gate_and_up_projs"
    state[name].view(torch.int16)[0, 2, 3] ^= 1
    found = rankslice.verify(state, check=False)
    assert [(m.tensor, m.expert, m.rank) for m in found.mismatches] == [(f"{EXPERTS}.gate_up_proj", 4, 2)]


def test_values_that_were_trained_differ_from_their_source(saved):
    model, ckpt = saved
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert rankslice.verify(state, ckpt).ok
    state["lm_head.weight"] *= 1.5
    with pytest.raises(rankslice.VerifyError, match="lm_head.weight") as caught:
        rankslice.verify(state, ckpt)
    assert [mismatch.tensor for mismatch in caught.value.report.mismatches] == ["lm_head.weight"]


def test_of_another_source_the_bytes_are_read(ckpt, tmp_path):
    other = checkpoints.copy(ckpt, tmp_path / "other")
    state = rankslice.load(ckpt)
    assert rankslice.verify(state, other).ok
    path = checkpoints.file_of(other, "lm_head.weight")
    flip_last_byte_of(path, "lm_head.weight")
    assert rankslice.verify(state).ok
    report = rankslice.verify(state, other, check=False)
    assert [mismatch.tensor for mismatch in report.mismatches] == ["lm_head.weight"]


def flip_last_byte_of(path, key):
    header = json.loads(path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")])
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little") + header[key]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(content)


def test_a_state_loaded_without_digests_is_compared_with_the_files_now(ckpt):
    state = rankslice.load(ckpt, verify="off")
    assert rankslice.verify(state).ok


def test_a_state_of_no_checkpoint_cannot_be_verified(saved):
    with pytest.raises(rankslice.UsageError, match="source"):
        rankslice.verify(saved[0])


def test_an_unknown_level_is_refused_by_name(ckpt):
    with pytest.raises(rankslice.UsageError, match="level.*everything"):
        rankslice.verify(rankslice.load(ckpt), level="everything")


def test_reports_are_values(ckpt):
    state = rankslice.load(ckpt)
    state["lm_head.weight"].view(torch.int16)[0, 0] ^= 1
    report = rankslice.verify(state, check=False)
    assert report == rankslice.verify(state, check=False)
    assert pickle.loads(pickle.dumps(report)) == report
    with pytest.raises(rankslice.VerifyError) as caught:
        rankslice.verify(state)
    assert pickle.loads(pickle.dumps(caught.value)).report == report
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.tensors = 0
