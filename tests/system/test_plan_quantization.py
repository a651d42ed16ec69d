"""`plan --quantization`: keys, dtypes and shapes that a rank loads from a block-FP8 checkpoint of the same model."""

import math
import re

import pytest

import checkpoints
import reference
from program import expect, run_ok

DECODER = re.compile(r"(?:model\.)?language_model\.layers\.\d+\.mlp\.experts\.(gate_up_proj|down_proj)")


def matrices(key, shape):
    """Rules 3, 4: the shapes of one expert's matrices in a grouped tensor."""
    _, rows, columns = shape
    if key.endswith("gate_up_proj"):
        return {"gate_proj": [rows // 2, columns], "up_proj": [rows // 2, columns]}
    return {"down_proj": [rows, columns]}


def destinations(tensors, width, ep_rank):
    """Rule 50 over rule 9, {key: (dtype, shape)} from the tensors of a checkpoint with grouped decoder experts."""
    wanted = {}
    for key, value in tensors.items():
        if reference.is_tracked(key):
            wanted[key] = ("F32", list(value.shape))  # rule 55
        elif DECODER.fullmatch(key):
            stem = key.rsplit(".", 1)[0]
            for x in reference.owned_experts(value.shape[0], width, ep_rank):
                for projection, shape in matrices(key, value.shape).items():
                    weight = f"{stem}.{x}.{projection}.weight"
                    wanted[weight] = ("F8_E4M3", shape)
                    wanted[f"{weight}_scale_inv"] = ("BF16", [math.ceil(length / 128) for length in shape])
        elif split := re.fullmatch(r"mtp\..*\.experts\.(\d+)\..*", key):  # rule 45
            if int(split[1]) in reference.owned_experts(8, width, ep_rank):
                wanted[key] = (value.dtype, list(value.shape))
        else:
            wanted[key] = (value.dtype, list(value.shape))
    return wanted


def listed(*args):
    lines = [line.split("  ") for line in run_ok("plan", *args, "--quantization").stdout.splitlines()]
    return [(key, dtype, [int(length) for length in shape.strip("[]").split(", ")]) for key, dtype, shape in lines]


@pytest.mark.parametrize(("ranks", "ep"), [(1, 1), (4, 4), (3, 3), (6, 3)])
def test_rule50_lists_what_each_rank_loads_from_a_block_fp8_checkpoint(tiny, tiny_tensors, ranks, ep):
    for rank in range(ranks):
        found = listed(tiny, "--ranks", ranks, "--ep", ep, "--rank", rank)
        expected = destinations(tiny_tensors, ep, rank % ep)
        assert len(found) == len(expected)
        assert {key: (dtype, shape) for key, dtype, shape in found} == expected


def test_rule50_every_scale_follows_its_weight_and_up_follows_gate(tiny):
    keys = [key for key, _, _ in listed(tiny, "--ranks", 4)]
    at = keys.index("model.language_model.layers.0.mlp.experts.1.gate_proj.weight")
    stem = "model.language_model.layers.0.mlp.experts.1"
    assert keys[at : at + 4] == [
        f"{stem}.gate_proj.weight",
        f"{stem}.gate_proj.weight_scale_inv",
        f"{stem}.up_proj.weight",
        f"{stem}.up_proj.weight_scale_inv",
    ]


def test_without_a_rank_it_is_the_first(tiny):
    assert listed(tiny, "--ranks", 4) == listed(tiny, "--ranks", 4, "--rank", 0)
    assert listed(tiny, "--ranks", 4) != listed(tiny, "--ranks", 4, "--rank", 1)


def test_json_has_the_same_and_each_ranks_part(tiny):
    mesh = ("--ranks", 4, "--ep-shard", 2, "--rank", 3)
    plan = run_ok("plan", tiny, *mesh, "--quantization", "--json").json
    assert plan["rank"] == 3 and plan["quantization"] is True
    assert plan["mesh"] == {"ep_replicate": 1, "ep_shard": 2, "ep": 2}
    assert [(entry["key"], entry["dtype"], entry["shape"]) for entry in plan["keys"]] == listed(tiny, *mesh)
    by_key = {entry["key"]: entry for entry in plan["keys"]}
    weight = by_key["model.language_model.layers.0.mlp.experts.7.up_proj.weight"]
    rows, columns = weight["shape"]
    assert weight["local_shape"] == [rows, columns // 2] and weight["offsets"] == [0, columns // 2]
    assert weight["fqn"] == "model.language_model.layers.0.mlp.experts.gate_and_up_projs"
    assert weight["experts"] == [7, 8] and weight["columns"] == [rows, 2 * rows]
    scales = by_key["model.language_model.layers.0.mlp.experts.7.up_proj.weight_scale_inv"]
    assert scales["is_scales"] and scales["local_shape"] == scales["shape"]


def test_rule25_patterns_judge_the_listed_keys(tiny, tiny_tensors):
    pattern = r".*experts\.[01]\.gate_proj"
    found = listed(tiny, "--ranks", 1, "--include", pattern, "--exclude", ".*_scale_inv|mtp")
    expected = [key for key in destinations(tiny_tensors, 1, 0) if re.match(pattern, key)]
    assert sorted(key for key, _, _ in found) == sorted(
        key for key in expected if not re.match(".*_scale_inv|mtp", key)
    )


def test_split_experts_give_the_same_keys_as_grouped_ones(mini, tmp_path):
    split = checkpoints.copy(mini, tmp_path / "split")
    checkpoints.split_experts(split)
    assert sorted(listed(split, "--ranks", 2, "--rank", 1)) == sorted(listed(mini, "--ranks", 2, "--rank", 1))


def test_a_rank_outside_is_wrong_usage(tiny):
    expect(2, "plan", tiny, "--ranks", 4, "--rank", 4, "--quantization", says="the ranks are 0 to 3")
