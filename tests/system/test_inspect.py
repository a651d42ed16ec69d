"""`inspect`: which layout, which quantisation, what becomes of the values, what is odd; and what it still says of a
checkpoint that cannot be loaded."""

import json

import pytest

import checkpoints
from program import expect, run, run_ok
from variants import Variant


def summary(folder, *options):
    return run_ok("inspect", folder, *options, "--json").json


def lines(folder, *options):
    """{label: lines} of the text."""
    found = {}
    for line in run_ok("inspect", folder, *options).stdout.splitlines():
        label, content = line[:12].strip(), line[12:]
        if label:
            found[label] = []
        else:
            label = list(found)[-1]
        found[label].append(content)
    return found


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    made = {}

    def once(**variant):
        key = str(sorted(variant.items()))
        if key not in made:
            made[key] = Variant(**variant).write(tmp_path_factory.mktemp("inspect") / "ckpt")
        return made[key]

    return once


def copy_of(folder, tmp_path):
    return checkpoints.copy(folder, tmp_path / "copy")


# Layout -------------------------------------------------------------------------------------------------------------


LAYOUTS = [  # rules 2-5, 5a, 26, 27, 61
    (dict(family="qwen3_5_moe"), ("grouped", "grouped", None)),
    (dict(family="qwen3_5_moe", split_decoder=True), ("split", "grouped", None)),
    (dict(family="qwen3_5_moe", split_mtp=True), ("grouped", "split", None)),
    (dict(family="qwen3_5_moe", split_decoder=True, fp8="decoder dense"), ("split", "grouped", None)),
    (dict(family="qwen3_5_moe", text=True), ("grouped", "grouped", None)),
    (dict(family="qwen3_moe", split_decoder=True, experts=1), ("split", "none", None)),
    (dict(family="qwen3_vl_moe"), ("grouped", "none", "hub")),
    (dict(family="qwen3_vl_moe", layout="transformers"), ("grouped", "none", "transformers")),
    (dict(family="qwen3_moe", split_decoder=True), ("split", "none", None)),
    (dict(family="qwen3_moe"), ("grouped", "none", None)),
    (dict(family="qwen3_next", split_decoder=True, split_mtp=True), ("split", "split", None)),
]


@pytest.mark.parametrize("variant, expected", LAYOUTS, ids=lambda value: str(value))
def test_inspect_names_the_layout_of_the_experts(write, variant, expected):
    layout = summary(write(**variant))["layout"]
    assert (layout["decoder_experts"], layout["mtp_experts"], layout["expert_layout"]) == expected
    for group in summary(write(**variant))["experts"]["groups"]:
        assert group["layout"] == layout["mtp_experts" if group["layers_of"] == "mtp" else "decoder_experts"]


def test_inspect_names_the_layout_in_words(write):
    assert lines(write(family="qwen3_5_moe", split_decoder=True))["layout"] == [
        "decoder experts split, MTP experts grouped"
    ]
    assert lines(write(family="qwen3_vl_moe", layout="transformers"))["layout"] == [
        "decoder experts grouped, no MTP experts, axes as transformers has them"
    ]


# Quantisation and conversions ---------------------------------------------------------------------------------------


FP8 = dict(family="qwen3_5_moe", split_decoder=True, fp8="decoder dense")
# 4 layers with 6 experts of 3 matrices; 3 layers with linear attention; the last, and MTP's, with 4 matrices.
FP8_GROUPS = {
    "decoder experts": 72,
    "shared experts": 12,
    "attention": 4,
    "linear attention": 9,
    "the rest of MTP": 8,
}


def test_inspect_counts_what_is_quantised(write):  # rules 4, 58, 60
    found = summary(write(**FP8))["quantisation"]
    found.pop("scales_in_other_files")
    assert found == {
        "method": "block-fp8",
        "weights": 105,
        "dtype": "F8_E4M3",
        "groups": FP8_GROUPS,
        "block": [128, 128],
        "scales": 105,
        "scale_dtypes": ["BF16"],
    }
    assert lines(write(**FP8))["quantised"][:2] == [
        "block-FP8: 105 weights in F8_E4M3 with 105 tensors of scales in BF16, blocks of 128 × 128",
        "weights: 72 of decoder experts, 12 of shared experts, 4 of attention, 9 of linear attention, "
        "8 of the rest of MTP",
    ]


def test_inspect_says_which_scales_lie_elsewhere(write):
    strewn = write(**FP8)
    index = json.loads((strewn / checkpoints.INDEX).read_text())["weight_map"]
    elsewhere = sum(file != index[f"{key}_scale_inv"] for key, file in index.items() if f"{key}_scale_inv" in index)
    assert 0 < elsewhere < 105
    assert summary(strewn)["quantisation"]["scales_in_other_files"] == elsewhere
    assert lines(strewn)["quantised"][2] == f"scales: {elsewhere} in other files than their weights"
    together = write(**FP8, files=1)
    assert summary(together)["quantisation"]["scales_in_other_files"] == 0
    assert lines(together)["quantised"][2] == "scales: in the files of their weights"


def test_inspect_says_that_nothing_is_quantised(mini):
    assert summary(mini)["quantisation"] == {"method": "none"}
    assert lines(mini)["quantised"] == ["none"]


def conversion(kind, tensors, old, new, because):
    return {"kind": kind, "from": old, "to": new, "tensors": tensors, "because": because}


HELD = [conversion("held_in_f32", 3, "BF16", "F32", "training"), conversion("held_in_f32", 3, "F32", "F32", "training")]


def test_rules55_58_inspect_tells_held_from_dequantised_tensors(write):
    """Three layers with A_log in F32 and dt_bias in BF16."""
    found = summary(write(**FP8))
    assert found["conversions"] == [conversion("dequantised", 105, "F8_E4M3", "BF16", "config.json"), *HELD]
    assert found["converted_on_load"] == 105 + 3
    text = lines(write(**FP8))
    assert text["in memory"] == [
        "105 F8_E4M3 tensors dequantised to BF16, the dtype in config.json",
        "3 BF16 tensors held in F32, as training needs them",
        "3 F32 tensors held in F32, as training needs them",
    ]


@pytest.mark.parametrize(("dtype", "name"), [("float32", "F32"), ("float16", "F16")])
def test_inspect_says_what_dtype_converts(mini, write, dtype, name):
    tensors = summary(mini)["dtypes"]["BF16"]["tensors"] - 3  # but for dt_bias
    expected = [conversion("cast", tensors, "BF16", name, "--dtype")]
    if name == "F16":  # three linear_attn.norm.weight
        expected.append(conversion("cast", 3, "F32", "F16", "--dtype"))
    assert summary(mini, "--dtype", dtype)["conversions"] == expected + HELD
    found = summary(write(**FP8), "--dtype", dtype)["conversions"]
    assert conversion("dequantised", 105, "F8_E4M3", name, "--dtype") in found


def test_inspect_says_when_nobody_said_a_dtype(write, tmp_path):
    ckpt = copy_of(write(**FP8), tmp_path)
    checkpoints.edit_json(ckpt / "config.json", lambda config: config["text_config"].pop("dtype"))
    assert "105 F8_E4M3 tensors dequantised to BF16, because config.json says no dtype" in lines(ckpt)["in memory"]


def test_inspect_of_a_store_says_what_it_was_made_of(write, tmp_path):
    run_ok("load", write(**FP8), "--store", tmp_path / "s.h5")
    found = summary(tmp_path / "s.h5")
    assert found["conversions"] == [conversion("dequantised", 105, "F8_E4M3", "BF16", "stored"), *HELD]
    assert found["quantisation"]["groups"] == FP8_GROUPS


def test_inspect_says_how_exports_go_back(mini, write):  # rules 50, 57
    gdn = "what is held in F32: in the source's dtypes; --gdn-dtype upstream: in F32, as NeMo Automodel"
    assert summary(mini)["export"] == {"values": "read", "headers": "source"}
    assert lines(mini)["export"] == ["the source's files; byte for byte, where no value is changed", gdn]
    found = summary(write(**FP8))
    tensors = found["tensors"] - 105 - 4 * (6 * 3 - 2)  # without scales, and two tensors for the experts of a layer
    assert found["export"] == {
        "values": "held",
        "headers": "converted",
        "tensors": tensors,
        "dtype": "BF16",
        "decoder_experts": "grouped",
        "mtp_experts": "grouped",
    }
    assert lines(write(**FP8))["export"] == [
        f"{tensors} tensors under fresh headers, none quantised: decoder experts grouped, MTP experts grouped; "
        "what was converted in BF16",
        "--export-layout source: the source's own; what cannot be computed back is copied from it",
        gdn,
    ]


def test_what_inspect_says_of_an_export_is_what_it_becomes(write, tmp_path):
    ckpt = write(**FP8)
    report = run_ok("to-hf", ckpt, tmp_path / "out", "--json").json
    expected = summary(ckpt)["export"]
    assert report["export"] == {"values": "held", "tensors": expected["tensors"], "copied_from": None}
    exported = summary(tmp_path / "out")
    assert exported["tensors"] == expected["tensors"]
    assert exported["layout"]["decoder_experts"] == expected["decoder_experts"]
    assert exported["quantisation"] == {"method": "none"}
    assert exported["problems"] == []


# What is odd --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3_5_moe", "qwen3_vl_moe", "qwen3_moe", "qwen3_next"])
@pytest.mark.parametrize("quantization", ["none", "fp8"])
def test_inspect_finds_nothing_odd_in_what_is_as_on_the_hub(family, quantization, tmp_path):
    run_ok("synth", tmp_path / "ckpt", "--family", family, "--quantization", quantization, "--headers-only")
    assert lines(tmp_path / "ckpt")["odd"] == ["nothing"]
    assert summary(tmp_path / "ckpt")["problems"] == []


def without_quantization(config):
    config.pop("quantization_config")


def fewer_layers(config):
    config["text_config"]["num_hidden_layers"] = 2


def without_sizes(config):
    del config["text_config"]["num_experts"]


def quantization(config):
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}


def without_sense(config):
    config["text_config"]["dtype"] = "bf17"


def static_activations(config):
    config["quantization_config"]["activation_scheme"] = "static"


ODD_CONFIGS = [
    (FP8, without_sense, 'found text_config.dtype "bf17"'),
    (FP8, static_activations, "activation_scheme static: scales of activations are never applied"),
    (FP8, without_quantization, "weights are quantised, but config.json has no quantization_config"),
    (dict(family="qwen3_5_moe"), fewer_layers, "num_hidden_layers = 2, but there are experts of layer 3 too"),
    (dict(family="qwen3_5_moe"), without_sizes, "config.json does not say so"),
    (dict(family="qwen3_5_moe"), quantization, "quantization_config speaks of fp8, but no weight is quantised"),
]


@pytest.mark.parametrize("variant, edit, says", ODD_CONFIGS, ids=lambda value: getattr(value, "__name__", ""))
def test_inspect_says_where_config_and_files_differ(write, variant, edit, says, tmp_path):
    ckpt = copy_of(write(**variant), tmp_path)
    before = summary(ckpt)["problems"]
    checkpoints.edit_json(ckpt / "config.json", edit)
    problem = [problem for problem in summary(ckpt)["problems"] if problem not in before]
    assert len(problem) == 1 and says in problem[0], problem


def test_rules5a_57_inspect_says_that_a_log_is_not_as_on_the_hub(write):
    says = "A_log is BF16, as transformers writes it; on the Hub it is F32"
    assert says in summary(write(family="qwen3_5_moe", dtype="BF16"))["problems"]
    assert says not in summary(write(family="qwen3_5_moe"))["problems"]
    assert says not in summary(write(family="qwen3_next", dtype="BF16"))["problems"]  # where the Hub has it so


# What cannot be loaded ----------------------------------------------------------------------------------------------


def test_rule61_inspect_shows_a_checkpoint_whose_shapes_are_no_evidence(write):
    ckpt = write(family="qwen3_vl_moe", hidden=16, width=8)
    told = expect(2, "inspect", ckpt, says="--expert-layout hub|transformers").stdout.splitlines()
    assert "family      qwen3_vl_moe" in told
    assert "format      huggingface, 3 files" in told
    assert "config      qwen3_vl_moe, layers 2, experts 6, hidden size 16, expert width 8, BF16" in told
    result = run("inspect", ckpt, "--json")
    assert result.code == 2
    known = result.json
    assert known["schema"] == "rankslice.inspect/1"
    assert known["error"]["code"] == 2 and "--expert-layout" in known["error"]["message"]
    assert known["tensors"] == summary(ckpt, "--expert-layout", "hub")["tensors"]


def test_inspect_shows_a_checkpoint_that_is_refused(broken):
    quantised = {"quant_method": "gptq", "bits": 4}
    checkpoints.edit_json(broken / "config.json", lambda config: config.update(quantization_config=quantised))
    told = expect(65, "inspect", broken, says="quant_method gptq is not supported").stdout
    assert "quantization gptq" in told


def test_inspect_shows_a_checkpoint_of_a_family_that_it_does_not_know(broken, mini_tensors):
    checkpoints.edit_json(broken / "config.json", lambda config: config.update(model_type="llama"))
    told = expect(65, "inspect", broken, says="llama").stdout.splitlines()
    assert "family      not known" in told
    known = run("inspect", broken, "--json").json
    assert (known["family"], known["config"]["model_type"]) == (None, "llama")
    assert (known["tensors"], known["error"]["code"]) == (len(mini_tensors), 65)


def test_inspect_says_nothing_of_what_has_no_readable_headers(broken):
    path = next(iter(broken.glob("*.safetensors")))
    path.write_bytes(path.read_bytes()[:4])
    assert expect(65, "inspect", broken).stdout == ""


# What the other commands say of it ----------------------------------------------------------------------------------


def test_load_reports_what_became_of_the_values(write, tmp_path):
    report = run_ok("load", write(**FP8), "--dtype", "float32", "--json", "--verify", "off").json
    found = summary(write(**FP8), "--dtype", "float32")
    assert report["conversions"] == found["conversions"]
    assert report["quantisation"] == found["quantisation"]
    assert (report["choices"]["dtype"], report["choices"]["text_only"]) == ("float32", False)
    assert (
        "values   105 F8_E4M3 tensors dequantised to BF16, the dtype in config.json"
        in run_ok("load", write(**FP8), "--verify", "off").stderr
    )


def test_an_export_reports_its_form(write, tmp_path):
    run_ok("load", write(**FP8), "--store", tmp_path / "s.h5")
    options = ["--export-layout", "source", "--source", write(**FP8)]
    report = run_ok("to-hf", tmp_path / "s.h5", tmp_path / "out", *options, "--json").json
    tensors = summary(write(**FP8))["tensors"]
    assert report["export"] == {"values": "read", "tensors": tensors, "copied_from": str(write(**FP8))}
    assert (report["choices"]["export_layout"], report["choices"]["gdn_dtype"]) == ("source", "preserve")


@pytest.mark.parametrize("variant", [FP8, dict(family="qwen3_vl_moe", fp8="decoder dense")], ids=["split", "grouped"])
def test_plan_lists_the_scales_that_a_rank_reads(write, variant):
    planned = run_ok("plan", write(**variant), "--ranks", 3, "--rank", 1, "--json").json
    assert sum(end - begin for begin, end in (read["bytes"] for read in planned["reads"])) == planned["bytes"]["read"]
    scales = [read for read in planned["reads"] if read["hf_key"].endswith("_scale_inv")]
    weights = [
        read for read in planned["reads"] if read["hf_key"] + "_scale_inv" in {read["hf_key"] for read in scales}
    ]
    assert scales and {read["fqn"] for read in scales} == {read["fqn"] for read in weights}


def test_plan_says_what_becomes_of_the_values(write):
    table = run_ok("plan", write(**FP8), "--ranks", 2).stdout.splitlines()
    assert "values: 105 F8_E4M3 tensors dequantised to BF16, the dtype in config.json" in table
