"""`ep_shard`: which bytes of the experts a rank wants, which it reads to get them, and what cannot be divided."""

import json

import pytest

import checkpoints
import reference
from program import OnRank, expect, run_ok
from reference import Mesh
from shards import assert_shards
from system_calls import tensor_bytes, times_read, traced
from variants import Variant

MESH = Mesh(1, 4, 2)
OPTIONS = ["--ep", MESH.ep, "--ep-shard", MESH.ep_shard]
STORED = {  # how the rows that a rank holds lie in a stored expert: as columns, or one after another
    "columns": [Variant("qwen3_5_moe"), Variant("qwen3_vl_moe", layout="transformers", odd=True)],
    "rows": [Variant("qwen3_vl_moe", layout="hub"), Variant("qwen3_vl_moe", layout="hub", experts=7, odd=True)],
}


def written(variant, folder):
    ckpt = variant.write(folder / "ckpt")
    return ckpt, reference.read_folder(ckpt), reference.Model.of(ckpt)


def dense_bytes(tensors, model):
    return sum(value.nbytes for value in reference.dense(tensors, model).values())


# What is wanted, what is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [v for variants in STORED.values() for v in variants], ids=str)
@pytest.mark.parametrize("mesh", [MESH, Mesh(2, 2, 2)], ids=str)
def test_the_ranks_of_a_replica_want_every_expert_byte_once(variant, mesh, tmp_path):  # rules 9, 13, 14
    ckpt, tensors, model = written(variant, tmp_path)
    options = ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard]
    report = run_ok("load", ckpt, *options, "--json", ranks=mesh.ranks).json
    wanted = [entry["bytes_wanted"] for entry in report["rank"]]
    assert wanted == [reference.bytes_wanted(tensors, mesh, rank, model) for rank in range(mesh.ranks)]
    dense, total = dense_bytes(tensors, model), sum(value.nbytes for value in tensors.values())
    in_replica = mesh.ranks // mesh.ep_replicate
    for first in range(0, mesh.ranks, in_replica):
        assert sum(wanted[first : first + in_replica]) == total - dense + in_replica * dense
    assert report["bytes"]["read"] == sum(entry["bytes_read"] for entry in report["rank"])


@pytest.mark.parametrize("variant", [v for variants in STORED.values() for v in variants], ids=str)
def test_a_rank_reads_at_most_what_its_plan_says(variant, tmp_path):
    ckpt, tensors, model = written(variant, tmp_path)
    planned = run_ok("plan", ckpt, "--ranks", MESH.ranks, *OPTIONS, "--json").json
    loaded = run_ok("load", ckpt, *OPTIONS, "--json", ranks=MESH.ranks).json
    assert planned["mesh"] == loaded["mesh"] == MESH.sizes
    for plan, load in zip(planned["rank"], loaded["rank"], strict=True):
        assert load["bytes_read"] <= plan["bytes_read"]
        assert load["bytes_wanted"] == plan["bytes_wanted"]
        assert load["bytes_owned"] == plan["bytes_owned"]


@pytest.mark.parametrize("variant", STORED["rows"], ids=str)
def test_rows_are_read_without_their_neighbours(variant, tmp_path):
    ckpt, tensors, model = written(variant, tmp_path)
    for entry in run_ok("load", ckpt, *OPTIONS, "--json", ranks=MESH.ranks).json["rank"]:
        assert entry["bytes_read"] == entry["bytes_wanted"]


@pytest.mark.parametrize("variant", STORED["columns"], ids=str)
def test_short_columns_are_read_as_whole_rows(variant, tmp_path):
    """At most ep_shard times what is wanted of the experts."""
    ckpt, tensors, model = written(variant, tmp_path)
    dense = dense_bytes(tensors, model)
    for entry in run_ok("load", ckpt, *OPTIONS, "--json", ranks=MESH.ranks).json["rank"]:
        of_experts, wanted = entry["bytes_read"] - dense, entry["bytes_wanted"] - dense
        assert wanted <= of_experts <= MESH.ep_shard * wanted


@pytest.mark.parametrize("command", ["load", "plan"])
def test_long_columns_are_read_alone(command, tmp_path):
    """An expert so wide that half a row of `down_proj` is 64 KiB: nothing else of the row is read."""
    variant = Variant("qwen3_vl_moe", layout="transformers", experts=2, width=1 << 16, files=1)
    ckpt, tensors, model = written(variant, tmp_path)
    if command == "load":
        report = run_ok("load", ckpt, "--ep", 1, "--ep-shard", 2, "--json", ranks=2).json
    else:
        report = run_ok("plan", ckpt, "--ranks", 2, "--ep", 1, "--ep-shard", 2, "--json").json
    down = sum(value.nbytes for key, value in tensors.items() if key.endswith(".down_proj"))
    both = sum(value.nbytes for key, value in tensors.items() if key.endswith(".gate_up_proj"))
    for entry in report["rank"]:
        assert entry["bytes_wanted"] == dense_bytes(tensors, model) + (both + down) // 2
        assert entry["bytes_read"] <= dense_bytes(tensors, model) + both + down // 2


# What the system calls say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [STORED["columns"][0], STORED["rows"][0]], ids=str)
def test_a_rank_asks_the_disk_for_what_its_plan_says(strace, variant, tmp_path):
    ckpt, tensors, model = written(variant, tmp_path)
    planned = run_ok("plan", ckpt, "--ranks", MESH.ranks, *OPTIONS, "--json").json
    on_rank = traced("load", ckpt, *OPTIONS, folder=tmp_path / "ranks", ranks=MESH.ranks)
    masks = tensor_bytes(ckpt)
    for entry in planned["rank"]:
        counts = times_read(on_rank, entry["rank"], reference.shard_files(ckpt))
        read = sum(int(counts[file][mask].sum()) for file, mask in masks.items())
        assert entry["bytes_wanted"] <= read <= entry["bytes_read"], f"rank {entry['rank']}"


# Rows that the ranks of a group read together ------------------------------------------------------------------------

ONCE = ["--dense", "once"]
TOGETHER = [
    *STORED["columns"],
    Variant("qwen3_5_moe", experts=5, split_decoder=True, split_mtp=True, odd=True),
    Variant("qwen3_5_moe", hidden=272, width=136, split_decoder=True, fp8="decoder", scales="F32"),
    Variant("qwen3_5_moe", dtype="F16"),
]


@pytest.mark.parametrize("variant", TOGETHER, ids=str)
@pytest.mark.parametrize("mesh", [Mesh(1, 1, 4), MESH], ids=str)
def test_rows_that_are_read_together_become_what_each_rank_holds(variant, mesh, tmp_path):  # rules 9, 14
    ckpt, tensors, model = written(variant, tmp_path)
    shards, report = tmp_path / "shards", tmp_path / "report.json"
    options = ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard, *ONCE, "--verify", "reread"]
    run_ok("load", ckpt, *options, "--save-shards", shards, "--report", report, ranks=mesh.ranks)
    assert_shards(shards, tensors, mesh, model)
    assert json.loads(report.read_text())["verify"]["mismatches"] == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_that_are_read_together_are_converted(dtype, tmp_path):
    ckpt, tensors, _ = written(STORED["columns"][0], tmp_path)
    shards = tmp_path / "shards"
    run_ok("load", ckpt, *OPTIONS, *ONCE, "--dtype", dtype, "--save-shards", shards, ranks=MESH.ranks)
    assert_shards(shards, tensors, MESH, reference.Model.of(ckpt, dtype=dtype))


@pytest.mark.parametrize("variant", STORED["columns"], ids=str)
@pytest.mark.parametrize("mesh", [MESH, Mesh(2, 2, 2)], ids=str)
def test_each_replica_reads_every_byte_of_its_experts_once(strace, variant, mesh, tmp_path):
    ckpt, tensors, model = written(variant, tmp_path)
    options = ["--ep", mesh.ep, "--ep-shard", mesh.ep_shard, *ONCE]
    planned = run_ok("plan", ckpt, "--ranks", mesh.ranks, *options, "--json").json
    on_rank = traced("load", ckpt, *options, folder=tmp_path / "ranks", ranks=mesh.ranks)
    masks = tensor_bytes(ckpt)
    of_ranks = [times_read(on_rank, rank, reference.shard_files(ckpt)) for rank in range(mesh.ranks)]
    for rank, counts in enumerate(of_ranks):
        read = sum(int(counts[file][mask].sum()) for file, mask in masks.items())
        assert read == planned["rank"][rank]["bytes_read"] == planned["rank"][rank]["bytes_wanted"]
    dense = set(reference.dense(tensors, model))
    for key, (file, begin, end) in reference.extents(ckpt).items():
        times = sum(counts[file][begin:end].astype(int) for counts in of_ranks)
        assert (times == (1 if key in dense else mesh.ep_replicate)).all(), key


def test_the_plan_says_what_ranks_pass_to_one_another_of_the_rows_that_they_share(tmp_path):
    ckpt, tensors, model = written(STORED["columns"][0], tmp_path)
    dense = dense_bytes(tensors, model)
    experts = sum(value.nbytes for value in tensors.values()) - dense
    alone = run_ok("plan", ckpt, "--ranks", MESH.ranks, *OPTIONS, "--json").json["rows"]
    assert alone["reading"] == "each-rank"
    assert sum(rank["bytes_read"] for rank in alone["rank"]) == MESH.ep_shard * experts
    assert sum(rank["bytes_sent"] + rank["bytes_received"] for rank in alone["rank"]) == 0
    planned = run_ok("plan", ckpt, "--ranks", MESH.ranks, *OPTIONS, *ONCE, "--json").json
    once = planned["rows"]
    assert once["reading"] == "once"
    assert sum(rank["bytes_read"] for rank in once["rank"]) == experts
    sent = sum(rank["bytes_sent"] for rank in once["rank"])
    assert sent == sum(rank["bytes_received"] for rank in once["rank"])
    stacked = [value for key, value in tensors.items() if key not in reference.dense(tensors, model)]
    messages = sum(value.shape[0] for value in stacked) * MESH.ep_shard * (MESH.ep_shard - 1)
    assert sent == experts * (MESH.ep_shard - 1) // MESH.ep_shard + messages * 24
    loaded = run_ok("load", ckpt, *OPTIONS, *ONCE, "--json", ranks=MESH.ranks).json
    assert loaded["choices"]["dense"] == "once"
    assert loaded["bytes"]["read"] == planned["bytes"]["read"] == experts + dense
    text = run_ok("plan", ckpt, "--ranks", MESH.ranks, *OPTIONS, *ONCE).stdout
    assert f"rows of shared experts: {experts} bytes, read once by each group" in text


def test_a_plan_of_one_rank_lists_the_rows_that_it_reads_for_its_group(tmp_path):
    ckpt, _, _ = written(STORED["columns"][0], tmp_path)
    options = ["--ranks", MESH.ranks, *OPTIONS, *ONCE, "--json"]
    of_all = run_ok("plan", ckpt, *options).json["rank"]
    read = {}
    for rank in range(MESH.ranks):
        planned = run_ok("plan", ckpt, "--rank", rank, *options).json
        assert (
            sum(end - begin for begin, end in (each["bytes"] for each in planned["reads"]))
            == (planned["bytes"]["read"])
        )
        assert planned["bytes"]["read"] == of_all[rank]["bytes_read"]
        for each in planned["reads"]:
            begin, end = each["bytes"]
            for byte in range(begin, end):
                read[each["file"], byte] = read.get((each["file"], byte), 0) + 1
    every = sum(int(mask.sum()) for mask in tensor_bytes(ckpt).values())
    assert len(read) == every and set(read.values()) == {1}


# Both forms of a store, and changed values --------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [STORED["columns"][0], STORED["rows"][1]], ids=str)
def test_a_store_is_loaded_in_ep_shards(variant, tmp_path):  # rules 9, 14
    """Native rows lie one after another in a store, so that nothing is read beside what is wanted."""
    ckpt, tensors, model = written(variant, tmp_path)
    run_ok("load", ckpt, "--store", tmp_path / "s.h5", ranks=3)
    report = tmp_path / "report.json"
    shards = tmp_path / "shards"
    run_ok("load", tmp_path / "s.h5", *OPTIONS, "--save-shards", shards, "--report", report, ranks=MESH.ranks)
    assert_shards(shards, tensors, MESH, model)
    for entry in json.loads(report.read_text())["rank"]:
        assert entry["bytes_read"] == entry["bytes_wanted"]


@pytest.mark.parametrize("ranks", [None, 3])
def test_shards_of_one_mesh_are_loaded_on_another(ranks, tmp_path):  # rules 9, 14
    ckpt, tensors, model = written(Variant("qwen3_5_moe", experts=7, split_mtp=True), tmp_path)
    run_ok("load", ckpt, *OPTIONS, "--save-shards", tmp_path / "first", ranks=MESH.ranks)
    mesh = Mesh(1, ranks or 1)
    run_ok("load", tmp_path / "first", "--save-shards", tmp_path / "second", ranks=ranks)
    assert_shards(tmp_path / "second", tensors, mesh, model)
    run_ok("to-hf", tmp_path / "second", tmp_path / "out", ranks=ranks)
    assert not checkpoints.folder_differences(ckpt, tmp_path / "out")


# What cannot be divided (rule 15) -----------------------------------------------------------------------------------

HIDDEN, WIDTH = checkpoints.HIDDEN, checkpoints.INTERMEDIATE  # 16 and 12


@pytest.mark.parametrize(
    ("ep_shard", "include", "name", "size"),
    [
        (3, "model", "Base gate_and_up_projs", HIDDEN),
        (8, "model", "Base down_projs", WIDTH),
        (3, "mtp", "MTP gate_and_up_projs", HIDDEN),
        (8, "mtp", "MTP down_projs", WIDTH),
    ],
)
@pytest.mark.parametrize("split", [False, True], ids=["stacked", "split"])
def test_rule15_rows_that_ep_shard_does_not_divide(split, ep_shard, include, name, size, tmp_path):
    variant = Variant("qwen3_5_moe", experts=2, files=1, split_decoder=split, split_mtp=split)
    ckpt = variant.write(tmp_path / "ckpt")
    says = f"{name} dim 1 ({size}) is not divisible by ep_shard_size={ep_shard}"
    expect(2, "plan", ckpt, "--ranks", ep_shard, "--ep", 1, "--ep-shard", ep_shard, "--include", include, says=says)
    shards = tmp_path / "shards"
    of_rank = ["--rank", 0, "--ranks", ep_shard, "--ep-shard", ep_shard, "--include", include]
    expect(2, "load", ckpt, "--ep", 1, *of_rank, "--save-shards", shards, says=says)
    assert not shards.exists()


@pytest.mark.parametrize("layout", ["hub", "transformers"])
def test_rule15_is_agreed_by_all_ranks(layout, tmp_path):
    ckpt = Variant("qwen3_vl_moe", layout=layout).write(tmp_path / "ckpt")
    says = f"Base gate_and_up_projs dim 1 ({HIDDEN}) is not divisible by ep_shard_size=3"
    on_rank = OnRank(tmp_path / "ranks", codes=True)
    result = expect(0, "load", ckpt, "--ep", 1, "--ep-shard", 3, ranks=3, on_rank=on_rank, says=says)
    assert result.rank_codes == {0: 2, 1: 2, 2: 2}
    assert result.stderr.count(says) == 1


@pytest.mark.parametrize(("ranks", "ep", "ep_shard"), [(4, 4, 2), (6, 2, 2), (4, 1, 3)])
def test_a_mesh_that_the_ranks_do_not_fill_is_wrong_usage(mini, ranks, ep, ep_shard):
    expect(2, "plan", mini, "--ranks", ranks, "--ep", ep, "--ep-shard", ep_shard, says=str(ranks))
    alone = ["--rank", 0, "--ranks", ranks]
    expect(2, "load", mini, *alone, "--ep", ep, "--ep-shard", ep_shard, says=str(ranks))


# What one rank can prove alone --------------------------------------------------------------------------------------


def test_a_rank_alone_says_that_parts_of_experts_cannot_be_compared_with_a_store(tmp_path):
    ckpt, _, _ = written(Variant("qwen3_5_moe"), tmp_path)
    run_ok("load", ckpt, "--store", tmp_path / "s.h5")
    alone = ["load", tmp_path / "s.h5", "--rank", 0, "--ranks", 2, "--json"]
    shared = run_ok(*alone, "--ep-shard", 2)
    assert shared.json["verify"]["experts_in_part"] == shared.json["verify"]["experts"] > 0
    assert "are here in part" in shared.stderr
    whole = run_ok(*alone)
    assert "experts_in_part" not in whole.json["verify"]
    assert "in part" not in whole.stderr
