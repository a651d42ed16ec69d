"""Checkpoints with block scales, or of a family with one tensor per expert, that are damaged in one place: nothing is
loaded, and the message names the key, what was expected there and what was found."""

import re

import numpy as np
import pytest

import checkpoints
import reference
from checkpoints import add_tensor, edit_header, edit_json, file_of, remove_tensor, rename_tensor, replace_tensor
from program import expect, run_ok
from reference import Tensor
from variants import Variant

SMALL = {"hidden": 160, "width": 136, "experts": 3, "layers": 1, "files": 2}  # matrices of two by two blocks
SPLIT = Variant("qwen3_5_moe", split_decoder=True, split_mtp=True, fp8="decoder mtp dense", **SMALL)
VL = Variant("qwen3_vl_moe", fp8="decoder dense", **SMALL)
VL_SWAPPED = Variant("qwen3_vl_moe", layout="transformers", fp8="decoder", **SMALL)
MOE = Variant("qwen3_moe", split_decoder=True, fp8="decoder", **SMALL)
MOE_BF16 = Variant("qwen3_moe", split_decoder=True, **SMALL)
NEXT = Variant("qwen3_next", split_decoder=True, split_mtp=True, fp8="decoder mtp", **SMALL)

LAYER = "model.language_model.layers.0"
GATE = f"{LAYER}.mlp.experts.1.gate_proj.weight"
DOWN = f"{LAYER}.mlp.experts.2.down_proj.weight"
MTP_UP = "mtp.layers.0.mlp.experts.2.up_proj.weight"
QUERY = f"{LAYER}.self_attn.q_proj.weight"
GROUPED = f"{LAYER}.mlp.experts.gate_up_proj"
OF_MOE = "model.layers.0.mlp.experts.1.up_proj.weight"
OF_NEXT = "mtp.layers.0.mlp.experts.1.down_proj.weight"


def scale_of(key):
    return f"{key}_scale_inv"


@pytest.fixture
def damaged(tmp_path):
    """Writes a checkpoint, sees that it is good, and damages it."""

    def write(variant, damage):
        ckpt = variant.write(tmp_path / "ckpt")
        load = ["load", ckpt, "--rank", 0, "--ranks", 2]
        run_ok(*load)
        damage(ckpt)
        return load

    return write


def refused(load, *says):
    for words in says:
        found = expect(65, *load).stderr
        assert re.search(rf"(?<![\w.]){re.escape(str(words))}(?![\w.])", found), f"{words!r} is not in:\n{found}"


def reshape(key, shape):
    """The same bytes under another shape."""
    return lambda ckpt: edit_header(file_of(ckpt, key), lambda header: header | {key: header[key] | {"shape": shape}})


def replace(key, value):
    """`value` makes a new tensor of the old one."""
    return lambda ckpt: replace_tensor(ckpt, key, value(reference.read_folder(ckpt)[key]))


def remove(*keys):
    return lambda ckpt: [remove_tensor(ckpt, key) for key in keys]


def add(beside, key, value):
    """`value` makes the tensor from the one beside it."""
    return lambda ckpt: add_tensor(ckpt, beside, key, value(reference.read_folder(ckpt)[beside]))


def edit_config(**fields):
    return lambda ckpt: edit_json(ckpt / "config.json", lambda config: config.get("text_config", config).update(fields))


# Missing pieces (rules 40, 41, 42, 60) ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "key", "says"),
    [
        (SPLIT, GATE, "Missing FP8 gate_proj weight/scale for layer 0, expert 1"),
        (SPLIT, DOWN, "Missing FP8 down_proj weight/scale for layer 0, expert 2"),
        (SPLIT, MTP_UP, f"Missing FP8 scale for MTP expert weight {MTP_UP}"),
        (SPLIT, QUERY, QUERY),
        (VL, GROUPED, GROUPED),
        (MOE, OF_MOE, "Missing FP8 up_proj weight/scale for layer 0, expert 1"),
        (NEXT, OF_NEXT, f"Missing FP8 scale for MTP expert weight {OF_NEXT}"),
    ],
    ids=str,
)
def test_rules40_60_a_missing_scale(damaged, variant, key, says):
    refused(damaged(variant, remove(scale_of(key))), says, key, scale_of(key))


@pytest.mark.parametrize(
    ("variant", "key", "says"),
    [
        (SPLIT, GATE, "Missing FP8 gate_proj weight/scale for layer 0, expert 1"),
        (SPLIT, MTP_UP, "layer 0, expert 2"),
        (SPLIT, QUERY, QUERY),
        (MOE, OF_MOE, "Missing FP8 up_proj weight/scale for layer 0, expert 1"),
    ],
    ids=str,
)
def test_rules40_60_scales_without_their_weight(damaged, variant, key, says):
    refused(damaged(variant, remove(key)), says, scale_of(key))


def test_rule60_scales_of_nothing_that_is_known(damaged):
    key = f"{LAYER}.self_attn.rotary.weight_scale_inv"
    refused(damaged(SPLIT, add(scale_of(QUERY), key, lambda value: value)), key)


@pytest.mark.parametrize(
    ("variant", "key", "parts"),
    [
        (SPLIT, GATE, ("gate", "up", "down")),
        (SPLIT, DOWN, ("gate", "up", "down")),
        (SPLIT, MTP_UP, ("gate", "up", "down")),
        (MOE, OF_MOE, ("gate", "up", "down")),
        (NEXT, OF_NEXT, ("down",)),
    ],
    ids=str,
)
def test_rules40_41_42_a_missing_expert(damaged, variant, key, parts):
    expert = re.sub(r"(gate|up|down)_proj", "{}_proj", key)
    weights = [expert.format(part) for part in parts]
    load = damaged(variant, remove(*weights, *map(scale_of, weights)))
    found = expect(65, *load).stderr
    assert any(weight in found for weight in weights), found
    layer, number = re.search(r"layers\.(\d+)\..*experts\.(\d+)\.", key).groups()
    refused(load, f"layer {layer}, expert {number}")


def test_rule42_a_missing_expert_of_an_unquantised_family_with_split_experts(damaged):
    load = damaged(MOE_BF16, remove(OF_MOE))
    refused(load, OF_MOE, "Missing up_proj weight for layer 0, expert 1")


# Scales and weights that do not fit each other (rules 58, 60) -------------------------------------------------------

WRONG_SCALES = [  # shape of the weight, of its scales, and what they become
    (SPLIT, GATE, [136, 160], [2, 2], [1, 2]),
    (SPLIT, DOWN, [160, 136], [2, 2], [4]),
    (SPLIT, MTP_UP, [136, 160], [2, 2], [1, 2, 2]),
    (SPLIT, QUERY, [16, 160], [1, 2], [2, 1]),
    (VL, GROUPED, [3, 160, 272], [3, 2, 3], [3, 3, 2]),
    (VL, GROUPED, [3, 160, 272], [3, 2, 3], [2, 2, 3]),
    (VL_SWAPPED, GROUPED, [3, 272, 160], [3, 3, 2], [3, 2, 3]),
    (MOE, OF_MOE, [136, 160], [2, 2], [2, 3]),
]


@pytest.mark.parametrize(("variant", "key", "weight", "expected", "shape"), WRONG_SCALES, ids=str)
def test_rule58_scales_of_the_wrong_shape(damaged, variant, key, weight, expected, shape):
    wrong = Tensor("BF16", np.full(shape, 0x3F80, "<u2"))
    load = damaged(variant, replace(scale_of(key), lambda _: wrong))
    text = f"FP8 scale shape {shape} does not match weight shape {weight} (expected {expected})"
    found = expect(65, *load, says=text).stderr
    assert scale_of(key) in found


@pytest.mark.parametrize("dtype", ["BF16", "F32", "U8", "F8_E5M2", "F8_E8M0"])
@pytest.mark.parametrize("key", [QUERY, GATE, MTP_UP])
def test_rule60_scales_of_a_weight_that_is_not_f8_e4m3(damaged, key, dtype):
    wrong = np.dtype(reference.BITS[dtype])
    load = damaged(SPLIT, replace(key, lambda value: Tensor(dtype, value.bits.astype(wrong))))
    found = expect(65, *load, says=[key, dtype, "F8_E4M3"]).stderr
    assert not re.search("(?i)unexpected", found)


@pytest.mark.parametrize("dtype", ["U8", "F8_E4M3", "F8_E8M0", "F64", "I16"])
def test_rule58_scales_that_are_no_floats(damaged, dtype):
    wrong = np.dtype(reference.BITS[dtype])
    load = damaged(SPLIT, replace(scale_of(GATE), lambda value: Tensor(dtype, np.ones(value.shape, wrong))))
    refused(load, scale_of(GATE), dtype)


def test_rule23_scales_under_both_names(damaged):
    other = reference.scale_keys(QUERY)[1]
    refused(damaged(SPLIT, add(scale_of(QUERY), other, lambda value: value)), scale_of(QUERY), other)


@pytest.mark.parametrize("key", [GATE, MTP_UP])
def test_rules26_60_one_expert_that_is_not_quantised(damaged, key):
    """Beside others that are: there is no dtype of the whole."""

    def damage(ckpt):
        remove_tensor(ckpt, scale_of(key))
        replace_tensor(ckpt, key, Tensor("BF16", np.zeros([136, 160], "<u2")))

    refused(damaged(SPLIT, damage), key, "BF16", "F8_E4M3")


# Sizes (rules 42, 61) -----------------------------------------------------------------------------------------------


matrices = pytest.mark.parametrize(
    ("variant", "key"), [(SPLIT, GATE), (SPLIT, MTP_UP), (MOE, OF_MOE), (MOE_BF16, OF_MOE)], ids=str
)


@pytest.mark.parametrize("variant", [SPLIT, VL, MOE, NEXT], ids=str)
@pytest.mark.parametrize("experts", [2, 4])
def test_rule42_another_number_of_experts_than_config_json_says(damaged, variant, experts):
    load = damaged(variant, edit_config(num_experts=experts))
    found = expect(65, *load, says=".mlp.experts.").stderr
    assert re.search(rf"\b{experts}\b", found) and re.search(r"\b[23]\b", found), found


@pytest.mark.parametrize("field", ["hidden_size", "moe_intermediate_size"])
@pytest.mark.parametrize("variant", [SPLIT, VL, MOE, NEXT], ids=str)
def test_rule61_another_size_than_config_json_says(damaged, variant, field):
    refused(damaged(variant, edit_config(**{field: 144})), "144")


def test_rule42_grouped_experts_that_are_clipped(damaged):
    """Weights and scales of two experts instead of three: upstream would take them for all."""

    def damage(ckpt):
        for key in (GROUPED, scale_of(GROUPED)):
            replace(key, lambda value: value[:2])(ckpt)

    refused(damaged(VL, damage), GROUPED, "[2, 160, 272]", "[3, 160, 272]")


@matrices
@pytest.mark.parametrize("kept", [128, 135])
def test_rule42_a_matrix_that_is_clipped(damaged, variant, key, kept):
    def damage(ckpt):
        replace(key, lambda value: value[:kept])(ckpt)
        if variant.fp8 and kept == 128:
            replace(scale_of(key), lambda value: value[:1])(ckpt)

    refused(damaged(variant, damage), key, "[136, 160]", f"[{kept}, 160]")


@matrices
def test_rule61_a_matrix_with_swapped_axes(damaged, variant, key):
    """The scales of two by two blocks fit either way."""
    load = damaged(variant, replace(key, lambda value: Tensor(value.dtype, value.bits.T)))
    refused(load, key, "[136, 160]", "[160, 136]")


def test_rule61_grouped_experts_with_their_axes_in_another_order(damaged):
    key = f"{LAYER}.mlp.experts.down_proj"
    expect(65, *damaged(VL, reshape(key, [136, 3, 160])), says=[key, "[136, 3, 160]"])


# Two of one (rules 26, 27, 39, 43) ----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [f"{LAYER}.mlp.experts", "mtp.layers.0.mlp.experts"])
def test_rules26_27_quantised_and_grouped_experts_of_one_layer(damaged, module):
    grouped = Tensor("BF16", np.zeros((3, 272, 160), "<u2"))
    load = damaged(SPLIT, add(f"{module}.0.up_proj.weight", f"{module}.gate_up_proj", lambda _: grouped))
    found = expect(65, *load, says="both split and grouped").stderr
    assert re.search(rf"'{module}\.\d\.(gate|up|down)_proj\.weight', '{module}\.gate_up_proj'", found), found


@pytest.mark.parametrize(
    ("variant", "key", "old", "new"),
    [
        (SPLIT, f"{LAYER}.input_layernorm.weight", "model.language_model.", "language_model."),
        (SPLIT, GATE, "model.language_model.", "model."),
        (VL, f"{LAYER}.input_layernorm.weight", "model.language_model.", "language_model."),
        (MOE_BF16, OF_MOE, "model.", ""),
        (MOE_BF16, "model.norm.weight", "model.", ""),
        (NEXT, "mtp.fc.weight", "mtp.", "model.mtp."),
    ],
    ids=str,
)
def test_rules39_43_two_spellings_of_one_name(damaged, variant, key, old, new):
    other = key.replace(old, new, 1)

    def damage(ckpt):
        add(key, other, lambda value: value)(ckpt)
        if variant.fp8 and key == GATE:
            add(scale_of(key), scale_of(other), lambda value: value)(ckpt)

    refused(damaged(variant, damage), key, other)


# Other quantisations ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "modelopt", "bitsandbytes", "mxfp4"])
def test_quantisations_that_are_not_supported_are_named(damaged, method):
    def damage(ckpt):
        edit_json(ckpt / "config.json", lambda config: config.update(quantization_config={"quant_method": method}))

    refused(damaged(SPLIT, damage), method, "config.json")


@pytest.mark.parametrize("blocks", [[64, 128], [128, 1], [1, 128]])
def test_blocks_of_another_size_are_named(damaged, blocks):
    def damage(ckpt):
        edit_json(ckpt / "config.json", lambda config: config["quantization_config"].update(weight_block_size=blocks))

    expect(65, *damaged(SPLIT, damage), says=["config.json", "weight_block_size", str(blocks)])


@pytest.mark.parametrize("ending", ["qweight", "qzeros", "weight_packed"])
def test_quantisations_that_config_json_does_not_name_are_known_by_their_tensors(damaged, ending):
    """Neither file nor config tells; loaded as they are, they would be taken for parameters."""

    def damage(ckpt):
        rename_tensor(ckpt, QUERY, QUERY.replace("weight", ending))

    plain = Variant("qwen3_5_moe", experts=3, layers=1)
    refused(damaged(plain, damage), QUERY.replace("weight", ending))


def test_a_scale_of_a_whole_weight_is_not_taken_for_a_missing_one(damaged):
    """As compressed-tensors and modelopt write FP8, which no missing file explains."""
    scale = scale_of(GATE).removesuffix("_inv")

    def damage(ckpt):
        rename_tensor(ckpt, scale_of(GATE), scale)

    refused(damaged(SPLIT, damage), scale, "compressed-tensors and modelopt")


def test_modelopts_own_file_refuses_quantised_weights_and_warns_beside_others(damaged, tmp_path):
    def damage(ckpt):
        (ckpt / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')

    refused(damaged(SPLIT, damage), "hf_quant_config.json", "modelopt")
    plain = Variant("qwen3_5_moe", experts=3, layers=1).write(tmp_path / "plain")
    damage(plain)
    expect(0, "load", plain, says="hf_quant_config.json speaks of modelopt quantisation, but no weight is quantised")


def test_a_wrong_scale_is_found_by_every_rank_and_said_once(tmp_path):
    ckpt = SPLIT.write(tmp_path / "ckpt")
    checkpoints.remove_tensor(ckpt, scale_of(GATE))
    result = expect(65, "load", ckpt, "--save-shards", tmp_path / "shards", ranks=2)
    assert result.stderr.count("Missing FP8") == 1 and not (tmp_path / "shards").exists()
