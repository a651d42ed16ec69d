"""`synth` makes what transformers, safetensors and huggingface_hub would."""

import json

import numpy as np
import pytest
import safetensors

import reference
from program import expect, run_ok

QWEN35, QWEN3VL, QWEN3MOE, QWEN3NEXT = FAMILIES = ["qwen3_5_moe", "qwen3_vl_moe", "qwen3_moe", "qwen3_next"]
FP8 = ["--quantization", "fp8"]
WORD = 2**64 - 1


def _mix(x):
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


def _mix_array(x):
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def expected_bytes(seed, name, dtype, size):
    """The values that src/synth/values.hpp defines."""
    fnv = 0xCBF29CE484222325
    for byte in name.encode():
        fnv = (fnv ^ byte) * 0x100000001B3 & WORD
    key = _mix(fnv ^ _mix(seed))
    scales = name.endswith("scale_inv")
    if dtype == "F8_E4M3":
        keep, base = WORD, 0
    elif dtype == "BF16":
        keep, base = (0x00FF, 0x3980) if scales else (0x83FF, 0x3B80)
        keep, base = keep * 0x0001000100010001, base * 0x0001000100010001
    else:
        positive = 0x39800000 if scales else 0x3F000000
        keep, base = (0x00FFFFFF, positive) if scales or name.endswith("A_log") else (0x83FFFFFF, 0x3B800000)
        keep, base = keep * 0x0000000100000001, base * 0x0000000100000001
    index = np.arange((size + 7) // 8, dtype=np.uint64)
    words = (_mix_array(np.uint64(key) + index * np.uint64(0x9E3779B97F4A7C15)) & np.uint64(keep)) + np.uint64(base)
    data = words.astype("<u8").tobytes()[:size]
    return data.translate(bytes.maketrans(b"\x7f\xff", b"\x7e\xfe")) if dtype == "F8_E4M3" else data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(family, options…) -> folder of a tiny checkpoint, made once."""
    folders = {}

    def make(*options):
        if options not in folders:
            folders[options] = tmp_path_factory.mktemp("made") / "ckpt"
            run_ok("synth", folders[options], "--preset", "tiny", "--family", *options)
        return folders[options]

    return make


def auto_class(folder):
    transformers = pytest.importorskip("transformers")
    with_vision = "vision_config" in json.loads((folder / "config.json").read_text())
    return transformers.AutoModelForImageTextToText if with_vision else transformers.AutoModelForCausalLM


def on_meta_device(folder):
    """{name: tensor} of the model that transformers builds from the folder's config.json, without memory."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = auto_class(folder).from_config(config)
    assert type(model).__name__ == config.architectures[0]
    return model.state_dict()


def is_scale(name):
    return name.endswith("_scale_inv")


def shapes_of(tensors):
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def with_split_experts(shapes):
    """Stacked experts as three tensors for each, as transformers writes those of Qwen3.5."""
    split = {}
    for name, shape in shapes.items():
        stem, _, projection = name.rpartition(".")
        if projection not in ("gate_up_proj", "down_proj"):
            split[name] = shape
            continue
        experts, rows, columns = shape
        parts = {"gate_proj": rows // 2, "up_proj": rows // 2} if projection == "gate_up_proj" else {projection: rows}
        for x in range(experts):
            split |= {f"{stem}.{x}.{part}.weight": [size, columns] for part, size in parts.items()}
    return split


def with_rows_as_inputs(shapes):
    """Stacked experts with the axes of the Qwen3-VL releases."""
    stacked = [name for name in shapes if reference.is_stacked(name)]
    return shapes | {name: [shapes[name][axis] for axis in (0, 2, 1)] for name in stacked}


@pytest.mark.parametrize(
    "options, as_written",
    [
        ([QWEN35], dict),
        ([QWEN35, "--mtp-experts", "split"], dict),
        ([QWEN35, "--decoder-experts", "split"], with_split_experts),
        ([QWEN35, "--text-only"], dict),
        ([QWEN35, "--expert-layout", "transformers"], with_split_experts),
        ([QWEN35, "--expert-layout", "transformers", "--decoder-experts", "grouped"], dict),
        ([QWEN3VL], with_rows_as_inputs),
        ([QWEN3VL, "--expert-layout", "transformers"], dict),
        ([QWEN3MOE], with_split_experts),
        ([QWEN3NEXT], with_split_experts),
        ([QWEN35, *FP8], with_split_experts),
        ([QWEN35, *FP8, "--text-only"], with_split_experts),
        ([QWEN3VL, *FP8], with_rows_as_inputs),
        ([QWEN3MOE, *FP8], with_split_experts),
        ([QWEN3NEXT, *FP8], with_split_experts),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_transformers_builds_the_same_tensors_from_the_config(made, options, as_written):
    folder = made(*options)
    tensors = shapes_of(reference.read_folder(folder))
    found = {name: shape for name, shape in tensors.items() if not name.startswith("mtp.") and not is_scale(name)}
    assert found == as_written(shapes_of(on_meta_device(folder)))


@pytest.mark.parametrize(
    "options", [[family] for family in FAMILIES] + [[QWEN35, "--text-only"], [QWEN35, "--experts", "11"]], ids=" ".join
)
def test_transformers_writes_the_same_files_but_for_the_values(made, options, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = made(*options, "--expert-layout", "transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0])(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size=4 << 20)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == sorted(path.name for path in folder.glob("*.safetensors"))
    for name in files:
        assert reference.raw_header(folder / name) == reference.raw_header(tmp_path / name), name
    for name in ("config.json", "model.safetensors.index.json"):
        assert (folder / name).read_text() == (tmp_path / name).read_text()


@pytest.mark.parametrize(
    "options",
    [
        [QWEN35],
        [QWEN35, "--expert-layout", "transformers"],
        [QWEN35, "--decoder-experts", "split"],
        [QWEN35, "--text-only"],
        [QWEN3VL],
        [QWEN3MOE],
        [QWEN3NEXT],
    ],
    ids=" ".join,
)
def test_transformers_loads_every_value(made, options):
    torch = pytest.importorskip("torch")
    folder = made(*options)
    model, report = auto_class(folder).from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(key.startswith("mtp.") for key in report["unexpected_keys"])
    state = model.state_dict()
    tensors = reference.read_folder(folder)
    (layer,) = {name.removesuffix(".down_proj") for name in state if name.endswith("layers.1.mlp.experts.down_proj")}
    for x in range(8):
        down = state[f"{layer}.down_proj"][x].view(torch.int16).numpy().view("<u2")
        if f"{layer}.down_proj" in tensors:
            expected = tensors[f"{layer}.down_proj"].bits[x]
        else:
            expected = tensors[f"{layer}.{x}.down_proj.weight"].bits
        assert (down == (expected.T if options == [QWEN3VL] else expected)).all(), x


def test_the_mtp_block_is_one_full_attention_layer(tiny_tensors):
    layer = "model.language_model.layers.3."  # of four layers the one with full attention
    shapes = {name: tensor.shape for name, tensor in tiny_tensors.items()}
    decoder = {name[len(layer) :]: shape for name, shape in shapes.items() if name.startswith(layer)}
    mtp = {name[len("mtp.") :]: shape for name, shape in shapes.items() if name.startswith("mtp.")}
    (hidden,) = shapes["model.language_model.norm.weight"]
    around = {"fc.weight": (hidden, 2 * hidden)}
    around |= {f"{norm}.weight": (hidden,) for norm in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")}
    assert mtp == around | {f"layers.0.{name}": shape for name, shape in decoder.items()}


def test_split_mtp_experts_are_those_of_one_layer_each_by_itself(made):
    tensors = reference.read_folder(made(QWEN35, "--mtp-experts", "split"))
    mtp = {name: tensor for name, tensor in tensors.items() if name.startswith("mtp.")}
    grouped = {name: tensor for name, tensor in reference.read_folder(made(QWEN35)).items() if name.startswith("mtp.")}
    assert shapes_of(mtp) == with_split_experts(shapes_of(grouped))
    assert {tensor.dtype for tensor in mtp.values()} == {"BF16"}


@pytest.mark.parametrize(
    "options",
    [[QWEN35, "--expert-layout", "transformers"]] + [[family, *more] for family in FAMILIES for more in ([], FP8)],
    ids=" ".join,
)
def test_every_element_is_the_documented_hash(made, options):
    for name, tensor in reference.read_folder(made(*options)).items():
        assert tensor.bits.tobytes() == expected_bytes(0, name, tensor.dtype, tensor.nbytes), name


@pytest.mark.parametrize("options", [[family, *more] for family in FAMILIES for more in ([], FP8)], ids=" ".join)
def test_safetensors_opens_every_file(made, options):
    torch = pytest.importorskip("torch")
    for path in sorted(made(*options).glob("*.safetensors")):
        with safetensors.safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():
                assert file.get_tensor(name).to(torch.float32).isfinite().all(), name


# Block-FP8 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_weights_have_a_scale_for_every_block(made, family):  # rules 4, 58
    tensors = reference.read_folder(made(family, *FP8))
    codes = {name for name, tensor in tensors.items() if tensor.dtype == "F8_E4M3"}
    assert {f"{name}_scale_inv" for name in codes} == {name for name in tensors if is_scale(name)}
    for name in codes:
        *experts, rows, columns = tensors[name].shape
        scales = tensors[f"{name}_scale_inv"]
        assert scales.shape == (*experts, -(-rows // 128), -(-columns // 128)), name
        assert scales.dtype == ("F32" if family == QWEN3NEXT else "BF16"), name


@pytest.mark.parametrize("family", FAMILIES)
def test_fp8_weights_come_out_as_small_as_weights_are(made, family):
    torch = pytest.importorskip("torch")
    tensors = {}
    for path in made(family, *FP8).glob("*.safetensors"):
        with safetensors.safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name).to(torch.float32) for name in file.keys() if ".3.self_attn" in name}
    (name,) = (name for name in tensors if name.endswith(".o_proj.weight"))
    weight, scales = tensors[name], tensors[f"{name}_scale_inv"]
    blocks = scales.repeat_interleave(128, 0)[: len(weight)].repeat_interleave(128, 1)[:, : weight.shape[1]]
    assert 0.1 < (weight * blocks).abs().max() < 0.5


@pytest.mark.parametrize("options", [[family] for family in FAMILIES] + [[QWEN35, "--text-only"]], ids=" ".join)
def test_fp8_is_what_the_config_says(made, options):
    transformers = pytest.importorskip("transformers")
    folder = made(*options, *FP8)
    config = transformers.AutoConfig.from_pretrained(folder).quantization_config
    assert {key: value for key, value in config.items() if key != "modules_to_not_convert"} == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    tensors = {name: tensor for name, tensor in reference.read_folder(folder).items() if not is_scale(name)}
    kept = {name.removesuffix(".weight") for name, tensor in tensors.items() if tensor.dtype != "F8_E4M3"}
    assert set(config["modules_to_not_convert"]) == {name for name in kept if not name.endswith(".bias")}


def test_fp8_changes_neither_names_nor_values_of_what_is_not_in_fp8(made):
    fp8 = reference.read_folder(made(QWEN35, *FP8))
    plain = reference.read_folder(made(QWEN35, "--decoder-experts", "split"))
    assert {name for name in fp8 if not is_scale(name)} == set(plain)
    for name, tensor in plain.items():
        if fp8[name].dtype != "F8_E4M3":
            assert fp8[name].dtype == tensor.dtype and (fp8[name].bits == tensor.bits).all(), name


@pytest.mark.parametrize("family", [QWEN35, QWEN3VL])
def test_huggingface_hub_would_write_the_same_files_and_index(made, family):
    hub = pytest.importorskip("huggingface_hub")
    tensors = reference.read_folder(made(family))
    order = list(on_meta_device(made(family)))
    order += sorted(name for name in tensors if name.startswith("mtp."))
    split = hub.serialization.split_state_dict_into_shards_factory(
        {name: tensors[name] for name in order},
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=4 << 20,
    )
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    expected = json.dumps(index, indent=2, sort_keys=True) + "\n"
    assert (made(family) / "model.safetensors.index.json").read_text() == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokenizer_loads(made, family):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(made(family))
    assert tokenizer.decode(tokenizer("<|im_start|>the theatre<|im_end|>").input_ids) == (
        "<|im_start|>the theatre<|im_end|>"
    )


# The real models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """Qwen3.5-397B-A17B without its bytes."""
    folder = tmp_path_factory.mktemp("huge") / "ckpt"
    run_ok("synth", folder, "--preset", "qwen3.5-397b-a17b", "--headers-only")
    return folder


def shapes_in_headers(folder):
    """Of all tensors but those of the MTP block, for which transformers has no class."""
    shapes = {}
    for path in folder.glob("*.safetensors"):
        header = json.loads(reference.raw_header(path)[8:])
        shapes |= {name: entry["shape"] for name, entry in header.items() if not name.startswith(("__", "mtp."))}
    return shapes


def test_headers_only_takes_no_disk(huge):
    files = [path.stat() for path in huge.iterdir()]
    assert sum(file.st_size for file in files) > 806_795_875_168
    assert sum(file.st_blocks * 512 for file in files) < 4 << 20


def test_safetensors_lists_every_tensor_of_a_huge_checkpoint(huge):
    weight_map = json.loads((huge / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(weight_map) == 2924
    found = {}
    for path in huge.glob("*.safetensors"):
        with safetensors.safe_open(path, framework="np") as file:
            found |= dict.fromkeys(file.keys(), path.name)
    assert found == weight_map


def test_transformers_builds_the_same_huge_model(huge):
    assert shapes_in_headers(huge) == shapes_of(on_meta_device(huge))


@pytest.mark.parametrize(
    "preset, family",
    [("qwen3.5-35b-a3b", QWEN35), ("qwen3.6-35b-a3b", QWEN35), ("qwen3.5-122b-a10b", QWEN35)]
    + [("qwen3-vl-30b-a3b", QWEN3VL), ("qwen3-vl-235b-a22b", QWEN3VL)]
    + [("qwen3-30b-a3b", QWEN3MOE), ("qwen3-next-80b-a3b", QWEN3NEXT)],
)
def test_transformers_builds_the_real_models_from_their_configs(preset, family, tmp_path):
    report = run_ok("synth", tmp_path / "ckpt", "--preset", preset, "--headers-only", "--json").json
    assert report["family"] == family
    expected = shapes_of(on_meta_device(tmp_path / "ckpt"))
    as_on_the_hub = {QWEN35: dict, QWEN3VL: with_rows_as_inputs}.get(family, with_split_experts)
    assert shapes_in_headers(tmp_path / "ckpt") == as_on_the_hub(expected)


@pytest.mark.parametrize(
    "preset, experts", [("qwen3.6-35b-a3b", 256), ("qwen3.5-397b-a17b", 512), ("qwen3-vl-235b-a22b", 128)]
)
def test_a_job_of_4096_ranks_can_be_planned_with_a_real_model(preset, experts, tmp_path):
    run_ok("synth", tmp_path / "ckpt", "--preset", preset, "--headers-only")
    ranks = run_ok("plan", tmp_path / "ckpt", "--ranks", 4096, "--json").json["rank"]
    owned = [rank["experts"] for rank in ranks]
    assert owned == [[x, x + 1] for x in range(experts)] + [[experts, experts]] * (4096 - experts)


def test_a_real_model_can_be_cut_down(tmp_path):
    run_ok("synth", tmp_path / "ckpt", "--preset", "qwen3.5-35b-a3b", "--layers", 4, "--experts", 2, "--headers-only")
    state = shapes_of(on_meta_device(tmp_path / "ckpt"))
    layer = "model.language_model.layers.3.mlp.experts"
    assert state[f"{layer}.down_proj"] == [2, 2048, 512]
    assert f"{layer}.down_proj".replace("layers.3", "layers.4") not in state


def test_help_lists_every_preset():
    text = run_ok("synth", "--help").stdout
    listed = expect(2, "synth", "OUT", "--preset", "nonsense").stderr.split("there are ")[1].split()
    assert len(listed) == 11
    for preset in listed:
        assert preset.rstrip(",") in text, preset


@pytest.mark.parametrize(
    "options, says",
    [
        (["--seed", "-1"], "found -1"),
        (["--seed", str(2**64)], f"found {2**64}"),
        (["--preset", "qwen3-vl-30b-a3b", "--family", QWEN35], "of family qwen3_vl_moe"),
        (["--preset", "qwen3-vl-30b-a3b", "--mtp-experts", "split"], "no MTP block"),
        (["--family", QWEN35, "--expert-layout", "transformers", "--mtp-experts", "grouped"], "no MTP block"),
        (["--family", QWEN35, "--expert-layout", "transformers", *FP8], "not of what transformers writes"),
        (["--family", QWEN35, *FP8, "--decoder-experts", "grouped"], "those of family qwen3_5_moe are split"),
        (["--family", QWEN3VL, "--decoder-experts", "split"], "have them grouped"),
        (["--family", QWEN3MOE, "--decoder-experts", "grouped"], "have them split"),
        (["--family", QWEN3NEXT, "--mtp-experts", "grouped"], "have them split"),
        (["--family", QWEN3MOE, "--mtp-experts", "split"], "no MTP block"),
        (["--family", QWEN3VL, "--text-only"], "no such model"),
        (["--family", QWEN3NEXT, "--text-only"], "models of family qwen3_next are"),
        (["--family", QWEN35, "--quantization", "int4"], "--quantization"),
        (["--family", QWEN35, "--decoder-experts", "nonsense"], "--decoder-experts"),
        (["--family", QWEN35, "--expert-layout", "nonsense"], "--expert-layout"),
        (["--family", QWEN35, "--mtp-experts", "nonsense"], "--mtp-experts"),
    ],
)
def test_what_contradicts_itself_is_wrong_usage(options, says, tmp_path):
    expect(2, "synth", tmp_path / "out", *options, says=says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "preset, size", [("qwen3.5-397b-a17b", 806_795_875_168), ("qwen3-vl-235b-a22b", 471_340_045_792)]
)
def test_a_dry_run_says_the_size_and_makes_nothing(preset, size, tmp_path):
    report = run_ok("synth", tmp_path / "out", "--preset", preset, "--dry-run", "--json").json
    assert report["bytes"]["checkpoint"] == size
    assert not list(tmp_path.iterdir())
