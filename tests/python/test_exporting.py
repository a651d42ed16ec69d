"""What is written of a state dict, what is refused, and what is left when that fails."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rankslice

sys.path.append(str(Path(__file__).resolve().parents[1] / "system"))

import checkpoints  # noqa: E402
import reference  # noqa: E402
import transformers_models  # noqa: E402


@pytest.fixture(scope="module")
def failed(saved_models, torchrun, tmp_path_factory):
    """The folder in which exports failed, and what each rank raised then."""
    out = tmp_path_factory.mktemp("failed")
    torchrun(2, "failing_exports.py", saved_models["qwen3_5_moe"][1], out)
    return out, json.loads((out / "errors.json").read_text())


FAILURES = {
    "a folder that one rank does not see": ("IoError", 74, "folder"),
    "other options on one rank": ("UsageError", 2, "options must be the same on every rank"),
    "a tensor that one rank lacks": ("UsageError", 2, "model.language_model.norm.weight"),
    "a tensor that ranks must exchange and one lacks": ("UsageError", 2, "are not those of rank 0"),
    "a tensor in strides that one rank lacks": ("UsageError", 2, "are not those of rank 0"),
    "a shape on one rank, beside tensors that ranks must exchange": ("UsageError", 2, "found [3]"),
    "an exchange that fails": ("CommError", 75, "the connection is lost"),
    "a state that only the first rank has": ("UsageError", 2, "got NoneType: every rank gives what it holds"),
    "another dtype on one rank": ("UsageError", 2, "got 'bfloat16'"),
    "a source on one rank alone": ("UsageError", 2, "source: is not given here, unlike on rank 0"),
    "an unknown tensor of which one rank has nothing": ("UsageError", 2, "strange"),
    "a tensor that only one rank has": ("UsageError", 2, "strange"),
    "a source that is not there": ("InputMissingError", 66, "nothing"),
    "a folder that exists": ("IoError", 73, "export"),
}


@pytest.mark.parametrize("what", FAILURES)
def test_the_failure_of_one_rank_is_that_of_all(failed, what):
    _, found = failed
    kind, code, says = FAILURES[what]
    first, second = found["errors"][what]
    assert first == second
    assert (first["type"], first["code"]) == (kind, code)
    assert says in first["message"]


@pytest.mark.parametrize(
    "what, raised",
    [
        ("a callback that raises on one rank", "OutOfPatience"),
        ("a state that one rank cannot take", "OutOfPatience"),
        ("no folder on one rank", "TypeError"),
    ],
)
def test_what_others_raise_leaves_its_own_rank_as_it_is_and_ends_the_others(failed, what, raised):
    first, second = failed[1]["errors"][what]
    assert second["type"] == raised
    assert first["type"] == "UnexpectedError"
    assert raised in first["message"]


def test_what_torch_raises_in_an_exchange_is_the_cause(failed):
    assert [error["cause"] for error in failed[1]["errors"]["an exchange that fails"]] == ["RuntimeError"] * 2


def test_where_a_rank_has_nothing_of_a_tied_tensor_the_others_say_that_it_is_tied(failed):
    assert failed[1]["errors"]["a tied tensor of which one rank has nothing"] == [None, None]


@pytest.mark.parametrize("function", [rankslice.verify, rankslice.gather])
def test_functions_that_take_no_family_ask_for_the_source_alone(function):
    with pytest.raises(rankslice.UsageError, match="give source$"):
        function({"lm_head.weight": torch.zeros(1)})


def test_failed_exports_leave_nothing_behind(failed):
    out, _ = failed
    assert sorted(path.name for path in out.iterdir()) == ["elsewhere", "errors.json", "export", "here"]
    assert [path.name for path in (out / "here" / "folder").iterdir()] == ["gathered"]
    assert list((out / "elsewhere").iterdir()) == []


def test_only_the_first_rank_needs_to_see_the_folder_when_it_gathers(failed, saved_models):
    out, found = failed
    assert found["errors"]["gathered where one rank sees the folder"] == [None, None]
    assert not checkpoints.folder_differences(saved_models["qwen3_5_moe"][1], out / "here" / "folder" / "gathered")


def test_what_exists_is_replaced_only_when_asked_to(failed, saved_models):
    out, found = failed
    assert found["errors"]["one that may be replaced"] == [None, None]
    assert not checkpoints.folder_differences(saved_models["qwen3_5_moe"][1], out / "export")


# One process, without torch.distributed ------------------------------------------------------------------------------


@pytest.fixture
def model_and_ckpt(saved_models):
    """A model of its own, which a test may change."""
    model, ckpt = saved_models["qwen3_5_moe"]
    return type(model).from_pretrained(ckpt, dtype=torch.bfloat16), ckpt


def test_a_single_process_needs_no_process_group(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    report = rankslice.to_hf(model, tmp_path / "out", source=ckpt)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")
    assert (report.headers, report.bytes_read) == ("source", 0)
    assert report.files == len(list(ckpt.glob("*.safetensors")))
    assert report.bytes_written == sum(p.numel() * p.element_size() for p in model.parameters())


def test_a_selection_is_exported_with_fresh_headers(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    report = rankslice.to_hf(model, tmp_path / "out", source=ckpt, include="lm_head|model.visual", exclude=".*bias")
    expected = {k: v for k, v in reference.read_folder(ckpt).items() if k.startswith(("lm_head", "model.visual"))}
    expected = {k: v for k, v in expected.items() if "bias" not in k}
    found = reference.read_folder(tmp_path / "out")
    assert report.headers == "selection"
    assert found.keys() == expected.keys()
    assert not any(reference.difference(expected[key], found[key]) for key in found)


def test_a_pipeline_stage_has_only_the_tensors_of_its_selection(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    stage = r"model.language_model.layers.[01]\."
    state = {name: value for name, value in model.state_dict().items() if re.match(stage, name)}
    rankslice.to_hf(state, tmp_path / "out", source=rankslice.open(ckpt, include=stage))
    expected = {key for key in reference.read_folder(ckpt) if re.match(stage, key)}
    assert reference.read_folder(tmp_path / "out").keys() == expected
    with pytest.raises(rankslice.UsageError, match="missing from the state dict"):
        rankslice.to_hf(state, tmp_path / "whole", source=ckpt)


def test_master_weights_give_a_checkpoint_of_their_own_dtype(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    model = model.float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(2**-12)  # not in bfloat16
    report = rankslice.to_hf(model, tmp_path / "out", source=ckpt)
    assert report.headers == "converted"
    again = type(model).from_pretrained(tmp_path / "out")
    assert again.dtype == torch.float32
    expected, found = dict(model.named_parameters()), dict(again.named_parameters())
    gdn = [name for name in expected if name.endswith(("A_log", "dt_bias"))]  # rule 57: as their source has them
    assert gdn
    for name, value in expected.items():
        assert torch.equal(found[name], value.bfloat16().float() if name in gdn else value), name


def test_master_weights_are_rounded_to_their_source_when_asked_to(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    model = model.float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    rounded = {name: value.bfloat16() for name, value in model.state_dict().items()}
    report = rankslice.to_hf(model, tmp_path / "out", source=ckpt, dtype="source")
    assert report.headers == "source"
    again = type(model).from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert [name for name, value in again.state_dict().items() if not torch.equal(value, rounded[name])] == []


def test_a_loaded_float32_state_is_rounded_to_its_source_when_asked_to(saved_models, tmp_path):
    _, ckpt = saved_models["qwen3_vl_moe"]
    state = rankslice.load(ckpt, dtype=torch.float32)
    rankslice.to_hf(state, tmp_path / "out", dtype="source")
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")


def test_a_single_tensor_of_another_dtype_must_fit(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    state, name = model.state_dict(), "lm_head.weight"
    state[name] = state[name].float()
    rankslice.to_hf(state, tmp_path / "out", source=ckpt)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")
    state[name][3, 4] += 2**-20
    with pytest.raises(rankslice.PlanError, match="lm_head.weight.*float32.*bfloat16.*dtype"):
        rankslice.to_hf(state, tmp_path / "more", source=ckpt)


def test_a_state_without_a_checkpoint_takes_its_family_and_side_files(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    report = rankslice.to_hf(model, tmp_path / "out", family="qwen3_5_moe", side_files=ckpt, max_file_bytes=100_000)
    assert report.headers == "state"
    assert report.files == 3  # 273 KB
    transformers_models.assert_same_model(model.eval(), tmp_path / "out")


def test_without_source_and_family_the_advice_names_both(model_and_ckpt, tmp_path):
    with pytest.raises(rankslice.UsageError, match="source.*family"):
        rankslice.to_hf(model_and_ckpt[0], tmp_path / "out")


def test_tensors_that_no_checkpoint_has_are_refused_by_name(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    state = model.state_dict() | {"inv_freq": torch.ones(3)}
    with pytest.raises(rankslice.PlanError, match="inv_freq"):
        rankslice.to_hf(state, tmp_path / "out", source=ckpt)
    assert not (tmp_path / "out").exists()


def test_extra_state_and_tied_names_are_left_out(model_and_ckpt, tmp_path):
    model, ckpt = model_and_ckpt
    state = model.state_dict()
    state["model.language_model.layers.0.mlp._extra_state"] = torch.ones(3)  # rule 25
    state["model.tied.weight"] = state["lm_head.weight"]
    rankslice.to_hf(state, tmp_path / "out", source=ckpt)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")


def test_a_model_that_shares_its_embedding_writes_it_once(tmp_path):
    model, ckpt = transformers_models.save_qwen3_vl(tmp_path / "ckpt", tied=True), tmp_path / "ckpt"
    assert "lm_head.weight" in model.state_dict()
    assert "lm_head.weight" not in reference.read_folder(ckpt)
    rankslice.to_hf(model, tmp_path / "out", source=ckpt)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    """A checkpoint of codes and block scales."""
    folder = tmp_path_factory.mktemp("fp8") / "ckpt"
    options = ["--experts", "4", "--layers", "2", "--quantization", "fp8", "--quiet"]
    subprocess.run([os.environ["SYSTEM_TEST_PROGRAM"], "synth", folder, *options], check=True)
    return folder


def test_codes_and_scales_are_copied_from_the_source_when_asked_for(fp8, tmp_path):
    state = rankslice.load(fp8)
    report = rankslice.to_hf(state, tmp_path / "out", export_layout="source")
    assert not checkpoints.folder_differences(fp8, tmp_path / "out")
    assert (report.headers, report.bytes_read > 0) == ("source", True)
    rankslice.save_shards(state, tmp_path / "shards")
    of_shards = rankslice.load(tmp_path / "shards")
    rankslice.to_hf(of_shards, tmp_path / "again", export_layout="source", originals=fp8)
    assert not checkpoints.folder_differences(fp8, tmp_path / "again")


def test_codes_of_values_that_were_changed_are_not_copied(fp8, tmp_path):
    state = rankslice.load(fp8)
    name = "model.language_model.layers.0.mlp.experts.down_projs"
    state[name][1, 2, 3] += 1
    with pytest.raises(rankslice.VerifyError, match="layers.0.mlp.experts"):
        rankslice.to_hf(state, tmp_path / "out", export_layout="source")
    assert list(tmp_path.iterdir()) == []
    assert rankslice.to_hf(state, tmp_path / "out").headers == "converted"


@pytest.mark.parametrize("wrong", [{"export_layout": "hub"}, {"gdn_dtype": "float32"}, {"dtype": "float32"}])
def test_words_that_stand_for_nothing_are_refused_with_their_argument(saved_models, tmp_path, wrong):
    state = rankslice.load(saved_models["qwen3_5_moe"][1])
    ((argument, word),) = wrong.items()
    with pytest.raises(rankslice.UsageError, match=f"{argument}: .*{word}"):
        rankslice.to_hf(state, tmp_path / "out", **wrong)


def test_shards_come_back_as_what_they_were(saved_models, tmp_path):
    _, ckpt = saved_models["qwen3_5_moe"]
    for rank in range(3):
        rankslice.save_shards(rankslice.load(ckpt, rank=rank, world_size=3), tmp_path / "shards")
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == ["rank-00000.safetensors", "rank-00001.safetensors", "rank-00002.safetensors"]
    rankslice.to_hf(rankslice.load(tmp_path / "shards"), tmp_path / "out")
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")


def test_progress_is_told_in_bytes(saved_models, tmp_path):
    _, ckpt = saved_models["qwen3_5_moe"]
    told = []
    rankslice.to_hf(rankslice.load(ckpt), tmp_path / "out", progress=lambda *step: told.append(step))
    assert {"verify", "to_hf"} <= {phase for phase, _, _ in told}
    for phase in ("verify", "to_hf"):
        done = [(done, total) for of, done, total in told if of == phase]
        assert done[-1][0] == done[-1][1] > 0


@pytest.mark.parametrize("resume", [True, False])
def test_an_export_that_may_be_resumed_says_in_the_log_what_it_found(resume, tiny, tmp_path, caplog):
    left = tmp_path / "out.partial-0123456789abcdef"
    left.mkdir()
    rankslice.to_hf(rankslice.load(tiny), tmp_path / "out", resume=resume)
    logged = [(record.name, record.levelname) for record in caplog.records if str(left) in record.getMessage()]
    assert logged == ([("rankslice", "WARNING")] if resume else [])
