"""The way back of checkpoints whose values are converted by loading: exported as they are held, or as the source had
them, from the checkpoint itself, from stores and from shards."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch

import checkpoints
import reference
import transformers_models
from program import expect, leftovers, run_ok
from shards import shard_path
from variants import Variant

GROUPED_FAMILIES = ["qwen3_5_moe", "qwen3_vl_moe"]  # those that rather export grouped experts
# Sizes that are no multiples of a block; scales stand in other files than their weights.
QWEN3_5 = Variant(
    "qwen3_5_moe",
    experts=3,
    width=132,
    hidden=144,
    layers=2,
    split_decoder=True,
    split_mtp=True,
    fp8="decoder mtp dense",
)
VARIANTS = {
    "qwen3_5": QWEN3_5,
    "qwen3_5_grouped": Variant("qwen3_5_moe", layers=2, fp8="decoder dense", scales="F32"),
    "qwen3_5_text": Variant("qwen3_5_moe", layers=2, text=True, split_decoder=True, fp8="decoder", trained="float16"),
    "qwen3_vl": Variant("qwen3_vl_moe", width=132, hidden=144, experts=3, fp8="decoder dense", scale_names=1),
    "qwen3_moe": Variant("qwen3_moe", fp8="decoder dense"),
    # Rule 26: as with `modules_to_not_convert`, the experts of the last layer are BF16 in tensors of their own.
    "qwen3_5_in_part": Variant("qwen3_5_moe", split_decoder=True, fp8="decoder", unquantised=r".*layers\.3\."),
    "qwen3_moe_in_part": Variant("qwen3_moe", fp8="decoder", unquantised=r".*layers\.0\."),
}


def is_split_in_decoder(key):
    return reference.is_split(key) and not key.startswith("mtp.")


def is_regrouped(weights, model):
    """Whether split decoder experts of HF key -> (value, scales) become grouped: all do if any are quantised."""
    quantised = any(scales for key, (_, scales) in weights.items() if is_split_in_decoder(key))
    return quantised and model.family in GROUPED_FAMILIES


def grouped(split):
    """HF key -> stacked experts, from those of {(module, expert, projection): matrix} (rules 3, 46)."""
    found = {}
    for module in {module for module, _, _ in split}:
        experts = range(1 + max(x for name, x, _ in split if name == module))
        for name, parts in {"gate_up_proj": ["gate_proj", "up_proj"], "down_proj": ["down_proj"]}.items():
            values = [[split[module, x, part] for part in parts] for x in experts]
            bits = np.stack([np.concatenate([value.bits for value in of_expert]) for of_expert in values])
            found[f"{module}.{name}"] = reference.Tensor(values[0][0].dtype, bits, any_nan=True)
    return found


def expected_export(folder, dtype="preserve", upstream=False):
    """HF key -> tensor (rules 44-50, 55, 57, 58)."""
    model, split, found = reference.Model.of(folder, dtype=dtype), {}, {}
    weights = reference.weights(reference.read_folder(folder))
    regrouped = is_regrouped(weights, model)
    for key, (value, scales) in weights.items():
        if reference.is_tracked(key):
            found[key] = reference.cast(value, "F32") if upstream else value
            continue
        held = model.held_dtype(key, value.dtype)
        result = reference.dequantised(value, scales, held) if scales else reference.cast(value, held)
        if regrouped and is_split_in_decoder(key):
            module, expert, projection, _ = key.rsplit(".", 3)
            split[module, int(expert), projection] = result
        else:
            found[key] = result
    return found | grouped(split)


def assert_exported(source, out, **options):
    wrong = reference.differences(expected_export(source, **options), reference.read_folder(out))
    assert not wrong, "\n".join(wrong[:20])
    assert not leftovers(out)


def without_quantisation(config):
    config = dict(config)
    config.pop("quantization_config", None)
    return config


@pytest.fixture(scope="module", params=VARIANTS)
def fp8(request, tmp_path_factory):
    return VARIANTS[request.param].write(tmp_path_factory.mktemp(request.param) / "ckpt")


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory):
    return QWEN3_5.write(tmp_path_factory.mktemp("fp8") / "ckpt")


@pytest.fixture(scope="module")
def stored(qwen3_5, tmp_path_factory):
    """What four ranks loaded: (store, folder of shards)."""
    folder = tmp_path_factory.mktemp("stored")
    outputs = ["--store", folder / "s.h5", "--save-shards", folder / "shards"]
    run_ok("load", qwen3_5, "--ep", 2, "--ep-shard", 2, *outputs, ranks=4)
    return folder / "s.h5", folder / "shards"


# rules 4, 23, 44-50, 57, 58, 60
@pytest.mark.parametrize("ranks", [None, 3])
def test_values_are_exported_as_they_are_held(fp8, ranks, tmp_path):
    result = run_ok("to-hf", fp8, tmp_path / "out", "--json", ranks=ranks)
    assert_exported(fp8, tmp_path / "out")
    assert result.json["headers"]["origin"] == "converted"
    written, source = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", fp8))
    assert list(written.items()) == list(without_quantisation(source).items())
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (fp8 / "tokenizer.json").read_bytes()
    run_ok("verify", tmp_path / "out")


# rules 9, 14, 50, 59
@pytest.mark.parametrize(("ep", "ep_shard", "ranks"), [(1, 1, None), (3, 1, 3), (2, 2, 4)])
def test_stores_and_shards_of_any_mesh_give_the_same_export(fp8, ep, ep_shard, ranks, tmp_path):
    outputs = ["--store", tmp_path / "s.h5", "--save-shards", tmp_path / "shards"]
    run_ok("load", fp8, "--ep", ep, "--ep-shard", ep_shard, *outputs, ranks=ranks)
    run_ok("to-hf", fp8, tmp_path / "out")
    for stored in ("s.h5", "shards"):
        run_ok("to-hf", tmp_path / stored, tmp_path / f"from-{stored}", ranks=2)
        assert not checkpoints.folder_differences(tmp_path / "out", tmp_path / f"from-{stored}")
    assert_exported(fp8, tmp_path / "out")


# rules 55, 57
def test_rule57_as_upstream_gdn_parameters_are_f32(qwen3_5, mini, tmp_path):
    for name, source in {"fp8": qwen3_5, "bf16": mini}.items():
        run_ok("to-hf", source, tmp_path / name, "--gdn-dtype", "upstream", ranks=2)
        assert_exported(source, tmp_path / name, upstream=True)


# rules 43, 50: the language model alone goes back under the names of its source
def test_rule43_a_language_model_alone_is_exported_under_the_names_of_its_source(qwen3_5, tmp_path):
    run_ok("load", qwen3_5, "--text-only", "--ep-shard", 2, "--store", tmp_path / "s.h5", ranks=2)
    expected = {key: value for key, value in expected_export(qwen3_5).items() if not key.startswith("model.visual.")}
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "out", ranks=3)
    assert not reference.differences(expected, reference.read_folder(tmp_path / "out"))
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "back", "--export-layout", "source", "--source", qwen3_5, ranks=2)
    source = reference.read_folder(qwen3_5)
    back = reference.read_folder(tmp_path / "back")
    assert not reference.differences({key: source[key] for key in back}, back)
    assert {key for key in source.keys() - back.keys() if not key.startswith("model.visual.")} == set()


DTYPES = {
    "fp8": QWEN3_5,
    "bf16": Variant("qwen3_vl_moe"),
    "f32": Variant("qwen3_5_moe", layers=2, dtype="F32", split_decoder=True),
}


# rules 44, 49, 50, 55, 57, 58
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("which", DTYPES)
def test_rule58_what_was_cast_is_exported_as_it_was_cast(which, dtype, tmp_path):
    source = DTYPES[which].write(tmp_path / "ckpt")
    run_ok("to-hf", source, tmp_path / "out", "--dtype", dtype, ranks=2)
    assert_exported(source, tmp_path / "out", dtype=dtype)
    unchanged = {"bf16": "bfloat16", "f32": "float32"}.get(which) == dtype
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["dtype"] == (DTYPES[which].trained if unchanged else dtype)

    run_ok("load", source, "--dtype", dtype, "--ep-shard", 2, "--store", tmp_path / "s.h5", ranks=4)
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "from_store", ranks=3)
    assert not checkpoints.folder_differences(tmp_path / "out", tmp_path / "from_store")
    back = ["--export-layout", "source"]
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "back", *back, "--source", source, ranks=2)
    run_ok("to-hf", source, tmp_path / "copy", *back, "--dtype", dtype, ranks=2)
    for out in ("back", "copy"):
        assert not checkpoints.folder_differences(source, tmp_path / out)


# rule 25: of the keys of the export
def test_rule25_patterns_judge_the_keys_of_the_export(qwen3_5, tmp_path):
    run_ok("to-hf", qwen3_5, tmp_path / "out", "--include", r".*layers\.1\.mlp\.experts\.(gate_up|down)_proj", ranks=2)
    names = {"gate_up_proj", "down_proj"}
    expected = {
        key: value
        for key, value in expected_export(qwen3_5).items()
        if ".layers.1.mlp.experts." in key and key.rsplit(".", 1)[1] in names
    }
    assert len(expected) == 2
    assert not reference.differences(expected, reference.read_folder(tmp_path / "out"))


@pytest.mark.parametrize("ranks", [None, 3])
def test_in_the_layout_of_the_source_every_byte_comes_back(fp8, ranks, tmp_path):
    run_ok("load", fp8, "--ep", 2, "--ep-shard", 2, "--store", tmp_path / "s.h5", ranks=4)
    run_ok("to-hf", fp8, tmp_path / "copy", "--export-layout", "source", ranks=ranks)
    back = ["--export-layout", "source", "--source", fp8]
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "out", *back, ranks=ranks)
    for out in ("copy", "out"):
        assert not checkpoints.folder_differences(fp8, tmp_path / out)


def test_shards_know_the_source_to_copy_from(qwen3_5, stored, tmp_path):
    _, shards = stored
    run_ok("to-hf", shards, tmp_path / "out", "--export-layout", "source", ranks=2)
    assert not checkpoints.folder_differences(qwen3_5, tmp_path / "out")


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_widened_value_that_was_changed_does_not_lose_bits_silently(ranks, tmp_path):
    source = Variant("qwen3_moe").write(tmp_path / "ckpt")
    shards = tmp_path / "shards"
    run_ok("load", source, "--dtype", "float32", "--save-shards", shards, ranks=2)
    back = ["to-hf", shards, tmp_path / "out", "--export-layout", "source"]
    run_ok(*back, ranks=ranks)
    assert not checkpoints.folder_differences(source, tmp_path / "out")
    for rank in range(2):  # copies must be the same
        with safetensors.safe_open(shard_path(shards, rank), "pt") as file:
            metadata = file.metadata()
        tensors = safetensors.torch.load_file(shard_path(shards, rank))
        tensors["model.norm.weight"][0] = 1.00001
        safetensors.torch.save_file(tensors, shard_path(shards, rank), metadata)
    expect(3, *back, "--overwrite", says=["model.norm.weight", "do not fit into BF16"], ranks=ranks)
    run_ok("to-hf", shards, tmp_path / "held", ranks=ranks)
    assert safetensors_value(tmp_path / "held", "model.norm.weight")[0] == np.float32(1.00001)


def safetensors_value(folder, key):
    return reference.read_folder(folder)[key].bits.view(np.float32)


def test_shards_that_outlive_their_source_do_not_go_back_to_its_layout(tmp_path):
    source = QWEN3_5.write(tmp_path / "ckpt")
    run_ok("load", source, "--rank", 0, "--ranks", 1, "--save-shards", tmp_path / "shards")
    source.rename(tmp_path / "elsewhere")
    orphaned = ["to-hf", tmp_path / "shards", tmp_path / "out", "--export-layout", "source"]
    expect(2, *orphaned, says="--source")
    assert not (tmp_path / "out").exists()
    run_ok(*orphaned, "--source", tmp_path / "elsewhere")
    assert not checkpoints.folder_differences(tmp_path / "elsewhere", tmp_path / "out")


def test_a_selection_in_the_layout_of_the_source_keeps_scales_with_their_weights(qwen3_5, stored, tmp_path):
    options = ["--export-layout", "source", "--source", qwen3_5, "--include", r"mtp.*up_proj\.weight$"]
    said = run_ok("to-hf", stored[0], tmp_path / "out", *options, ranks=2).stderr
    expected = {
        key: value
        for key, value in reference.read_folder(qwen3_5).items()
        if key.startswith("mtp.") and ".up_proj.weight" in key
    }
    assert any(key.endswith("_scale_inv") for key in expected)
    assert f"selected {len(expected)} of " in said
    assert not reference.differences(expected, reference.read_folder(tmp_path / "out"))


DRY_RUN = pytest.mark.parametrize("dry_run", [[], ["--dry-run"]], ids=["export", "dry run"])


@DRY_RUN
def test_a_store_needs_its_source_to_go_back_to_fp8(stored, dry_run, tmp_path):
    expect(2, "to-hf", stored[0], tmp_path / "out", "--export-layout", "source", *dry_run, says="--source", ranks=2)
    assert not (tmp_path / "out").exists()


@DRY_RUN
def test_another_source_is_refused(qwen3_5, stored, dry_run, tmp_path):
    other = checkpoints.copy(qwen3_5, tmp_path / "other")
    index = other / "model.safetensors.index.json"
    index.write_text(index.read_text() + "\n")
    options = ["--export-layout", "source", "--source", other, *dry_run]
    expect(66, "to-hf", stored[0], tmp_path / "out", *options, says=[other, stored[0], "fingerprint"], ranks=2)
    assert not (tmp_path / "out").exists()


CHANGED = "model.language_model.layers.1.mlp.experts.gate_and_up_projs"


def change_one_bit(shard, name, at):
    with safetensors.safe_open(shard, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    tensors[name].view(torch.int16)[at] ^= 1
    safetensors.torch.save_file(tensors, shard, metadata)


def test_a_value_that_was_changed_does_not_go_back_to_fp8(qwen3_5, stored, tmp_path):
    shards = checkpoints.copy(stored[1], tmp_path / "shards")
    change_one_bit(shard_path(shards, 1), CHANGED, (0, 5, 140))  # ep 1 has expert 2; columns from 132 on are of up_proj
    key = "model.language_model.layers.1.mlp.experts.2.up_proj.weight"
    says = [key, "expert 2", "was changed since it was loaded", "F8_E4M3", "--export-layout auto"]
    expect(3, "to-hf", shards, tmp_path / "out", "--export-layout", "source", says=says, ranks=3)
    assert not (tmp_path / "out").exists()
    assert not leftovers(tmp_path / "out")

    run_ok("to-hf", shards, tmp_path / "out", ranks=2)
    found = reference.read_folder(tmp_path / "out")
    expected = expected_export(qwen3_5)
    changed = expected["model.language_model.layers.1.mlp.experts.gate_up_proj"].bits
    changed[2, 140, 5] ^= 1  # [E, 2I, H]
    assert not reference.differences(expected, found)


def test_a_dry_run_says_what_would_be_copied_from(qwen3_5, stored, tmp_path):
    options = ["--export-layout", "source", "--source", qwen3_5, "--dry-run", "--json"]
    report = run_ok("to-hf", stored[0], tmp_path / "out", *options, ranks=2).json
    assert report["export"]["copied_from"] == str(qwen3_5)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changed_is_not_copied(qwen3_5, stored, tmp_path):
    """Other codes under the same headers are no fault of the headers, but not what was loaded."""
    other = checkpoints.copy(qwen3_5, tmp_path / "other")
    key = "model.language_model.layers.0.mlp.experts.1.down_proj.weight"
    file, begin, _ = reference.extents(other)[key]
    with open(other / file, "r+b") as data:
        data.seek(begin + 7)
        code = data.read(1)[0]
        data.seek(begin + 7)
        data.write(bytes([code ^ 0x40]))
    options = ["--export-layout", "source", "--source", other]
    expect(3, "to-hf", stored[0], tmp_path / "out", *options, says=[key, "expert 1"], ranks=2)
    assert not (tmp_path / "out").exists()


def test_a_source_whose_other_scales_give_the_same_values_is_not_copied(tmp_path):
    """An F32 scale has bits that BF16 values do not show: only what the store recorded of it does."""
    source = VARIANTS["qwen3_5_grouped"].write(tmp_path / "ckpt")
    run_ok("load", source, "--store", tmp_path / "s.h5")
    other = checkpoints.copy(source, tmp_path / "other")
    key = "model.language_model.layers.1.self_attn.o_proj.weight_scale_inv"
    file, begin, _ = reference.extents(other)[key]
    data = bytearray((other / file).read_bytes())
    data[begin] ^= 1  # the lowest bit of the first scale
    (other / file).write_bytes(data)
    for folder in (source, other):
        run_ok("to-hf", folder, tmp_path / f"values-{folder.name}")
    assert not checkpoints.folder_differences(tmp_path / "values-ckpt", tmp_path / "values-other")
    options = ["--export-layout", "source", "--source", other]
    expect(3, "to-hf", tmp_path / "s.h5", tmp_path / "out", *options, says=[key, other], ranks=2)
    assert not (tmp_path / "out").exists()


def test_contradicting_options_are_refused(qwen3_5, stored, tmp_path):
    expect(
        2, "to-hf", qwen3_5, tmp_path / "out", "--export-layout", "source", "--gdn-dtype", "upstream", says="upstream"
    )
    expect(2, "to-hf", stored[0], tmp_path / "out", "--source", qwen3_5, says="--export-layout source")
    expect(2, "to-hf", qwen3_5, tmp_path / "out", "--export-layout", "source", "--source", qwen3_5, says="--source")


# transformers -------------------------------------------------------------------------------------------------------


def quantise(key, value, found):
    """What a release in block-FP8 has of a weight that fits one block."""
    scale = (value.float().abs().amax() / 448).to(torch.bfloat16)
    found[key] = (value.float() / scale.float()).to(torch.float8_e4m3fn)
    found[f"{key}_scale_inv"] = scale.reshape(1, 1)


def write_quantised(source, target):
    """A checkpoint of transformers in FP8, all experts and attention, and the model of its values."""
    shutil.copytree(source, target)
    weight_map = {}
    for path in sorted(target.glob("*.safetensors")):
        found = {}
        for key, value in safetensors.torch.load_file(path).items():
            if reference.is_split(key) or key.endswith(("q_proj.weight", "o_proj.weight", "out_proj.weight")):
                quantise(key, value, found)
            else:
                found[key] = value
        safetensors.torch.save_file(found, path, {"format": "pt"})
        weight_map |= dict.fromkeys(found, path.name)
    checkpoints.edit_json(target / "model.safetensors.index.json", lambda index: index.update(weight_map=weight_map))
    quantisation = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    checkpoints.edit_json(target / "config.json", lambda config: config.update(quantization_config=quantisation))
    return target


def dequantise_model(model, folder):
    """Give a model in memory the values of a quantised folder, by torch."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= safetensors.torch.load_file(path)
    changed = 0
    for name, parameter in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            module, which = name.rsplit(".", 1)
            parts = ["gate_proj", "up_proj"] if which == "gate_up_proj" else ["down_proj"]
            rows = [
                torch.cat([dequantised_tensor(tensors, f"{module}.{x}.{part}.weight") for part in parts])
                for x in range(len(parameter))
            ]
            parameter.data = torch.stack(rows)
        elif f"{name}_scale_inv" in tensors:
            parameter.data = dequantised_tensor(tensors, name)
            changed += 1
    assert changed


def dequantised_tensor(tensors, key):
    return (tensors[key].float() * tensors[f"{key}_scale_inv"].float()).to(torch.bfloat16)


@pytest.mark.usefixtures("transformers")
def test_transformers_loads_the_export_and_computes_the_same(tmp_path):
    model = transformers_models.save_qwen3_5(tmp_path / "bf16", per_expert=True)
    fp8 = write_quantised(tmp_path / "bf16", tmp_path / "fp8")
    dequantise_model(model, fp8)
    run_ok("load", fp8, "--ep", 3, "--ep-shard", 2, "--store", tmp_path / "s.h5", ranks=6)
    run_ok("to-hf", tmp_path / "s.h5", tmp_path / "out", ranks=2)
    transformers_models.assert_same_model(model, tmp_path / "out")
