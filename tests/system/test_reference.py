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
