"""The reference is checked against literal values of the rules before anything is checked against the reference."""

import numpy as np
import pytest
import torch

import reference
from reference import Mesh, Model, Tensor, tensor


def ranges(experts, width):
    return [(part.start, part.stop) for part in (reference.owned_experts(experts, width, r) for r in range(width))]


def test_rule9_gives_the_remainder_to_the_first_ranks():
    assert ranges(8, 3) == [(0, 3), (3, 6), (6, 8)]
    assert ranges(10, 4) == [(0, 3), (3, 6), (6, 8), (8, 10)]
    assert ranges(3, 4)[-1] == (3, 3)
    assert [stop - start for start, stop in ranges(128, 6)] == [22, 22, 21, 21, 21, 21]


def test_rule13_ep_is_the_fastest_dimension_of_the_mesh():
    at = [Mesh(ep_replicate=2, ep=2).coordinate(rank) for rank in range(4)]
    assert [(c["ep_replicate"], c["ep"]) for c in at] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert Mesh(ep_replicate=2, ep_shard=3, ep=2).coordinate(9) == {"ep_replicate": 1, "ep_shard": 1, "ep": 1}


def test_rule14_an_ep_shard_is_rows_of_axis_1_of_the_owned_experts():
    mesh, name = Mesh(ep_replicate=1, ep_shard=2, ep=3), "model.language_model.layers.0.mlp.experts.down_projs"
    boxes = [reference.local_box(name, (8, 12, 16), mesh, rank) for rank in range(6)]
    assert [(box[0].start, box[0].stop) for box in boxes] == [(0, 3), (3, 6), (6, 8)] * 2
    assert [(box[1].start, box[1].stop) for box in boxes] == [(0, 6)] * 3 + [(6, 12)] * 3
    assert {(box[2].start, box[2].stop) for box in boxes} == {(0, 16)}
    assert reference.local_box("lm_head.weight", (8, 12), mesh, 4) == (slice(0, 8), slice(0, 12))


@pytest.mark.parametrize(
    ("hf_key", "native_name"),
    [
        # rule 35
        (
            "model.language_model.layers.3.mlp.experts.gate_up_proj",
            "model.language_model.layers.3.mlp.experts.gate_and_up_projs",
        ),
        ("model.layers.3.mlp.experts.down_proj", "model.language_model.layers.3.mlp.experts.down_projs"),
        ("mtp.layers.0.mlp.experts.gate_up_proj", "mtp.layers.0.mlp.experts.gate_and_up_projs"),
        # rule 34
        ("mtp.fc.weight", "mtp.layers.0.eh_proj.weight"),
        ("mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"),
        # rule 38
        (
            "model.language_model.layers.0.mlp.shared_expert.up_proj.weight",
            "model.language_model.layers.0.mlp.shared_experts.up_proj.weight",
        ),
        (
            "model.language_model.layers.0.mlp.shared_expert_gate.weight",
            "model.language_model.layers.0.mlp.shared_expert_gate.weight",
        ),
        ("lm_head.weight", "lm_head.weight"),
        ("model.lm_head.weight", "lm_head.weight"),
        ("language_model.norm.weight", "model.language_model.norm.weight"),
        # rule 54
        (
            "model.language_model.layers.0.linear_attn.A_log",
            "model.language_model.layers.0.linear_attn._fp32_params.A_log",
        ),
        (
            "model.language_model.layers.0.linear_attn.norm.weight",
            "model.language_model.layers.0.linear_attn.norm.weight",
        ),
        ("model.visual.pos_embed.weight", "model.visual.pos_embed.weight"),
    ],
)
def test_hf_keys_become_native_names(hf_key, native_name):
    assert reference.fqn(hf_key, "model.") == native_name


VL_LAYER = "language_model.layers.3"


@pytest.mark.parametrize(
    ("hf_key", "native_name"),
    [
        # rule 20
        (f"model.{VL_LAYER}.mlp.experts.gate_up_proj", f"model.{VL_LAYER}.mlp.experts.gate_and_up_projs"),
        (f"{VL_LAYER}.mlp.experts.down_proj", f"model.{VL_LAYER}.mlp.experts.down_projs"),
        ("model.layers.3.mlp.experts.down_proj", "model.layers.3.mlp.experts.down_proj"),
        # rule 22
        ("lm_head.weight", "lm_head.weight"),
        ("model.lm_head.weight", "model.lm_head.weight"),
        ("visual.pos_embed.weight", "model.visual.pos_embed.weight"),
        # rule 23
        ("mtp.fc.weight", "model.mtp.fc.weight"),
    ],
)
def test_hf_keys_of_qwen3_vl_moe_become_native_names(hf_key, native_name):
    assert reference.fqn(hf_key, "model.", "qwen3_vl_moe") == native_name


def test_rule61_the_shapes_of_qwen3_vl_moe_tell_its_layout():
    hub, key = np.arange(2 * 4 * 6, dtype="<u2").reshape(2, 4, 6), f"model.{VL_LAYER}.mlp.experts.gate_up_proj"
    model = Model("qwen3_vl_moe", hidden=4, width=3)
    for stored in (hub, hub.transpose(0, 2, 1)):
        (value,) = reference.global_state({key: Tensor("BF16", stored)}, model).values()
        assert value.bits.tolist() == hub.tolist()
    square, key = np.arange(2 * 4 * 4, dtype="<u2").reshape(2, 4, 4), key.replace("gate_up", "down")
    for layout, expected in (("hub", square), ("transformers", square.transpose(0, 2, 1))):
        (value,) = reference.global_state({key: Tensor("BF16", square)}, Model("qwen3_vl_moe", 4, 4, layout)).values()
        assert value.bits.tolist() == expected.tolist()


@pytest.mark.parametrize("module", ["model.language_model.layers.1", "mtp.layers.0"])
def test_split_experts_are_stacked_with_gate_left_of_up(module):  # rules 36, 40, 41
    parts = {  # one expert: 3 wide, hidden size 2
        "gate": [[0, 1], [2, 3], [4, 5]],
        "up": [[6, 7], [8, 9], [10, 11]],
        "down": [[12, 13, 14], [15, 16, 17]],
    }
    checkpoint = {
        f"{module}.mlp.experts.{x}.{part}_proj.weight": Tensor("BF16", np.array(values, "<u2") + np.uint16(100 * x))
        for x in (10, *range(10))
        for part, values in reversed(parts.items())
    }
    state = reference.global_state(checkpoint)
    both, down = (state[f"{module}.mlp.experts.{name}"].bits for name in ("gate_and_up_projs", "down_projs"))
    assert (both.shape, down.shape, len(state)) == ((11, 2, 6), (11, 3, 2), 2)
    assert (both[10] - 1000).tolist() == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    assert (down[2] - 200).tolist() == [[12, 15], [13, 16], [14, 17]]


def test_rule35_a_stacked_tensor_is_sliced_and_axes_1_and_2_are_exchanged():
    value = Tensor("BF16", np.arange(24, dtype="<u2").reshape(4, 2, 3))
    part = reference.native("model.layers.0.mlp.experts.down_proj", value, range(1, 3))
    assert part.bits.tolist() == [[[6, 9], [7, 10], [8, 11]], [[12, 15], [13, 16], [14, 17]]]


def test_rule55_tracked_values_are_widened_exactly_and_nan_payloads_stay():
    bits = np.array([0x3F80, 0xC000, 0x7F81, 0xFFA5, 0x0001, 0x8000], "<u2")  # 1, -2, two NaNs, a subnormal, -0
    wide = reference.native("model.layers.0.linear_attn.dt_bias", Tensor("BF16", bits))
    assert wide.dtype == "F32"
    assert wide.bits.tolist() == [int(b) << 16 for b in bits]
    assert reference.native("model.layers.0.linear_attn.norm.weight", Tensor("BF16", bits)).dtype == "BF16"


# Block scales and casts ---------------------------------------------------------------------------------------------

CODES = {0x38: 1.0, 0xC0: -2.0, 0x7E: 448.0, 0x01: 2.0**-9, 0x80: -0.0}  # of F8_E4M3


def bf16(*values):
    return Tensor("BF16", (np.array(values, "<f4").view("<u4") >> 16).astype("<u2"))


@pytest.mark.parametrize(("code", "value"), CODES.items())
def test_rule58_a_value_is_its_code_times_the_scale_of_its_block(code, value):
    """130 x 129: three of the four blocks are partial."""
    codes = Tensor("F8_E4M3", np.full((130, 129), code, "u1"))
    scales = Tensor("BF16", bf16(1.0, -0.5, 4.0, 1.5).bits.reshape(2, 2))
    found = reference.dequantised(codes, scales, "F32").bits.view("<f4")
    expected = np.empty((130, 129), "<f4")
    expected[:128, :128], expected[:128, 128:], expected[128:, :128], expected[128:, 128:] = (
        np.float32(value) * np.float32(scale) for scale in (1.0, -0.5, 4.0, 1.5)
    )
    assert np.array_equal(found.view("<u4"), expected.view("<u4"))  # minus zero counts


def test_rule58_is_rounded_once():
    """By way of BF16, 1 + 2^-9 + 2^-20 would become 1."""
    scale = np.array([[1 + 2.0**-9 + 2.0**-20]], "<f4").view("<u4")
    found = reference.dequantised(Tensor("F8_E4M3", np.array([[0x38]], "u1")), Tensor("F32", scale), "F16")
    assert found.bits.tolist() == [[0x3C02]]


def test_rule58_grouped_scales_are_those_of_each_expert():
    codes = Tensor("F8_E4M3", np.full((3, 2, 130), 0x38, "u1"))
    scales = Tensor("BF16", bf16(1, 2, 3, 4, 5, 6).bits.reshape(3, 1, 2))
    found = reference.dequantised(codes, scales, "BF16").bits
    assert found[:, 1, [0, 127, 128, 129]].tolist() == bf16([1, 1, 2, 2], [3, 3, 4, 4], [5, 5, 6, 6]).bits.tolist()


def test_rule58_agrees_with_transformers_on_whole_blocks(transformers):
    """Elsewhere transformers takes blocks of another size, derived from the shapes."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    random = np.random.default_rng(5)
    codes = random.integers(0, 0x7F, (256, 384), "u1") | random.integers(0, 2, (256, 384), "u1") << 7
    scales = (random.integers(0x3A00, 0x4100, (2, 3)) | random.integers(0, 2, (2, 3)) << 15).astype("<u2")
    for dtype, target in (("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)):
        theirs = Fp8Dequantize(None)._dequantize_one(
            torch.from_numpy(codes).view(torch.float8_e4m3fn),
            torch.from_numpy(scales.view("<i2")).view(torch.bfloat16),
            target,
        )
        ours = reference.dequantised(Tensor("F8_E4M3", codes), Tensor("BF16", scales), dtype)
        assert np.array_equal(theirs.view(torch.uint8).numpy(), ours.bits.view("u1"))


LAYER = "model.language_model.layers.0"


@pytest.mark.parametrize("scale_key", ["q_proj.weight_scale_inv", "q_proj_scale_inv"])
def test_rules23_60_quantised_weights_take_their_scales_with_them(scale_key):
    checkpoint = {
        f"{LAYER}.self_attn.q_proj.weight": Tensor("F8_E4M3", np.full((1, 2), 0x38, "u1")),
        f"{LAYER}.self_attn.{scale_key}": Tensor("BF16", bf16(3.0).bits.reshape(1, 1)),
    }
    for model, dtype in ((Model(), "BF16"), (Model(trained="F16"), "F16"), (Model(trained="F16", dtype="F32"), "F32")):
        ((name, value),) = reference.global_state(checkpoint, model).items()
        assert (name, value.dtype) == (f"{LAYER}.self_attn.q_proj.weight", dtype)
        assert reference.converted(checkpoint, model) == {name: "F8_E4M3"}
        assert reference.stored_digests(checkpoint, model) == {name: reference.digest(value)}


def test_rules55_57_a_requested_dtype_spares_integers_and_what_training_keeps_in_f32():
    values = {name: bf16(1.0, 2.0) for name in ("linear_attn.A_log", "linear_attn.norm.weight", "mlp.gate.weight")}
    checkpoint = {f"{LAYER}.{name}": value for name, value in values.items()}
    checkpoint[f"{LAYER}.ints"] = Tensor("I16", np.zeros(2, "<u2"))
    state = reference.global_state(checkpoint, Model(dtype="F16"))
    assert [value.dtype for value in state.values()] == ["F32", "F16", "F16", "I16"]
    assert state[f"{LAYER}.mlp.gate.weight"].bits.tolist() == [0x3C00, 0x4000]


def test_rule43_a_text_model_has_no_vision_and_no_segment_for_it():
    keys = [f"{LAYER}.mlp.experts.down_proj", "model.visual.pos_embed.weight", "lm_head.weight", "mtp.norm.weight"]
    checkpoint = {key: Tensor("BF16", np.zeros((1, 1, 1), "<u2")) for key in keys}
    assert reference.global_state(checkpoint, Model(text_only=True)).keys() == {
        "model.layers.0.mlp.experts.down_projs",
        "lm_head.weight",
        "mtp.layers.0.final_layernorm.weight",
    }


@pytest.mark.parametrize(
    ("family", "hf_key", "native_name"),
    [
        ("qwen3_moe", "model.layers.3.mlp.experts.7.up_proj.weight", "model.layers.3.mlp.experts.gate_and_up_projs"),
        ("qwen3_moe", "model.layers.3.mlp.gate.weight", "model.layers.3.mlp.gate.weight"),
        ("qwen3_next", "model.layers.3.mlp.experts.7.down_proj.weight", "model.layers.3.mlp.experts.down_projs"),
        ("qwen3_next", "mtp.layers.0.mlp.experts.7.down_proj.weight", "mtp.layers.0.mlp.experts.down_projs"),
        ("qwen3_next", "model.layers.3.linear_attn.A_log", "model.layers.3.linear_attn._fp32_params.A_log"),
        (
            "qwen3_next",
            "model.layers.3.mlp.shared_expert.up_proj.weight",
            "model.layers.3.mlp.shared_experts.up_proj.weight",
        ),
    ],
)
def test_hf_keys_of_per_expert_families_become_native_names(family, hf_key, native_name):
    assert reference.fqn(hf_key, "model.", family) == native_name


# digest/1 and the comparison ----------------------------------------------------------------------------------------

VECTORS = [  # dtype, values, digest, d(0), d(1), …
    ("U16", np.arange(24, dtype="<u2").reshape(2, 3, 4), ["fbf5c2c633a7f118", "e4954f3df8a62cf6", "176073883b01c422"]),
    (
        "U16",
        np.arange(24, dtype="<u2").reshape(2, 3, 2, 2),
        ["9af98a92e110df40", "81e282a194f77a48", "191707f14c1964f8"],
    ),
    (
        "U8",
        np.zeros((4, 2, 8), "<u1"),
        ["d0c9e4e7d05b4b00", "f08921de38c612a0", "832029fe1cd5a260", "879dc1aec9e216e0", "d582d75cb0dd7f20"],
    ),
    ("F32", np.array([1.0, -2.0, 0.5], "<f4"), ["38dea0e61b3e2d5b"]),
    ("I64", np.array([[1, -1], [2**40, 0]], "<i8"), ["5b09870fee63297d"]),
    ("F64", np.array(1.5, "<f8"), ["12e7a33a84fac494"]),
    ("F32", np.zeros((0,), "<f4"), ["0000000000000000"]),
]


@pytest.mark.parametrize(("dtype", "values", "expected"), VECTORS)
def test_digest_vectors(dtype, values, expected):
    value = tensor(dtype, values.shape, values.tobytes())
    assert [f"{number:016x}" for number in reference.digest(value)] == expected


def test_digest_factors():
    assert [f"{reference.entry_factor(e):016x}" for e in (0, 1)] == ["d3c0067c775b5e6d", "d5653bc81154a5fb"]
    assert [f"{f:08x}" for f in reference.row_factors(3)] == ["4d2d99cf", "fb178619", "d5834d41"]
    assert [f"{f:08x}" for f in reference.word_factors(3)] == ["08dc147d", "a641c7df", "9da97c0d"]


def test_of_a_conversion_any_nan_will_do_but_no_number():
    expected = Tensor("BF16", np.array([0x7FC0], "<u2"), any_nan=True)
    for bits, wrong in ((0xFFFF, False), (0x7F81, False), (0x7F80, True), (0, True)):
        assert bool(reference.difference(expected, Tensor("BF16", np.array([bits], "<u2")))) == wrong


def test_the_comparison_sees_a_nan_payload_a_sign_of_zero_and_a_missing_tensor():
    nans = [Tensor("BF16", np.array([0x7FC0 + n], "<u2")) for n in range(2)]
    zeros = [Tensor("BF16", np.array([sign], "<u2")) for sign in (0, 0x8000)]
    assert torch.isnan(torch.from_numpy(nans[1].bits.view("<i2")).view(torch.bfloat16)).all()
    assert reference.differences({"a": nans[0]}, {"a": nans[0]}) == []
    assert len(reference.differences({"a": nans[0]}, {"a": nans[1]})) == 1
    assert len(reference.differences({"a": zeros[0]}, {"a": zeros[1]})) == 1
    assert reference.differences({"a": zeros[0]}, {}) == ["a: missing"]
    assert reference.differences({}, {"a": zeros[0]}) == ["a: should not be there"]
    assert "shape" in reference.differences({"a": zeros[0]}, {"a": Tensor("BF16", np.zeros((1, 1), "<u2"))})[0]
    assert "dtype" in reference.differences({"a": zeros[0]}, {"a": Tensor("F16", zeros[0].bits)})[0]
