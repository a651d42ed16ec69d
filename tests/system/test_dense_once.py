"""`--dense once`: all ranks together ask the disk for every dense byte once, and every rank holds all of them."""

import numpy as np
import pytest

import reference
from program import expect, run_ok
from reference import Mesh
from shards import assert_shards
from system_calls import tensor_bytes, times_read, traced
from variants import Variant

VARIANTS = [
    Variant("qwen3_5_moe"),
    Variant("qwen3_vl_moe"),
    Variant("qwen3_5_moe", fp8="dense", scales="F16", odd=True),
]


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_all_ranks_together_read_every_byte_once(variant, tmp_path):
    ckpt = variant.write(tmp_path / "ckpt")
    on_rank = traced("load", ckpt, "--dense", "once", folder=tmp_path / "ranks", ranks=4)
    shards, everything = reference.shard_files(ckpt), tensor_bytes(ckpt)
    counts = [times_read(on_rank, rank, shards) for rank in range(4)]
    for file, of_tensors in everything.items():
        times = sum(count[file] for count in counts)
        assert np.array_equal(times[of_tensors], np.ones(of_tensors.sum())), file
        assert all(count[file][of_tensors].any() for count in counts if len(everything) == 1)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_every_rank_holds_all_dense_tensors(mini, mini_tensors, ranks, tmp_path):
    run_ok("load", mini, "--dense", "once", "--save-shards", tmp_path / "shards", ranks=ranks)
    assert_shards(tmp_path / "shards", mini_tensors, Mesh(1, ranks))


def test_the_report_is_what_the_plan_said(mini, mini_tensors):
    planned = run_ok("plan", mini, "--ranks", 4, "--dense", "once", "--json").json
    loaded = run_ok("load", mini, "--dense", "once", "--json", ranks=4).json
    assert loaded["choices"]["dense"] == planned["dense"]["reading"] == "once"
    for name in ("bytes_read", "bytes_wanted", "bytes_owned"):
        assert [rank[name] for rank in loaded["rank"]] == [rank[name] for rank in planned["rank"]]
    total = sum(value.nbytes for value in mini_tensors.values())
    assert loaded["bytes"]["read"] == planned["bytes"]["read"] == total
    dense = sum(value.nbytes for value in reference.dense(mini_tensors, reference.Model.of(mini)).values())
    of_rank = planned["dense"]["rank"]
    assert [rank["rank"] for rank in of_rank] == [0, 1, 2, 3]
    assert sum(rank["bytes_read"] for rank in of_rank) == dense
    held = reference.local_state(mini_tensors, Mesh(1, 4), 0).items()  # converted, where training keeps more bits
    native = sum(value.nbytes for name, value in held if ".experts." not in name)
    assert sum(rank["bytes_received"] for rank in of_rank) == sum(rank["bytes_sent"] for rank in of_rank) == 3 * native
    for rank, after in zip(of_rank, of_rank[1:] + of_rank[:1], strict=True):
        assert rank["bytes_sent"] == after["bytes_received"]


def test_the_plan_lists_the_ranges_that_a_rank_reads(mini):
    read = {}
    for rank in range(3):
        plan = run_ok("plan", mini, "--ranks", 3, "--rank", rank, "--dense", "once", "--json").json
        for item in plan["reads"]:
            read.setdefault(item["file"], []).append(item["bytes"])
        assert plan["bytes"]["read"] == sum(end - begin for _, (begin, end) in _ranges(plan))
    for path in reference.shard_files(mini):
        ranges = sorted(read[path.name])
        assert all(a[1] == b[0] for a, b in zip(ranges, ranges[1:], strict=False)), path.name


def _ranges(plan):
    return [(item["file"], item["bytes"]) for item in plan["reads"]]


def test_a_plan_that_is_not_asked_reads_them_on_each_rank(mini):
    planned = run_ok("plan", mini, "--ranks", 2, "--json").json
    assert planned["dense"]["reading"] == "each-rank"
    assert all(rank["bytes_sent"] == rank["bytes_received"] == 0 for rank in planned["dense"]["rank"])


def test_on_one_host_each_rank_reads_them_and_says_why(mini):
    result = run_ok("load", mini, "-v", "--json", ranks=2)
    assert result.json["choices"]["dense"] == "each-rank"
    assert "dense    each-rank: the ranks are on one host" in result.stderr


def test_one_rank_alone_cannot_share(mini):
    result = expect(2, "load", mini, "--rank", 0, "--ranks", 2, "--dense", "once")
    assert "--dense once needs all ranks" in result.stderr


def test_what_is_on_its_way_takes_little_memory(tmp_path):
    """300 MB of dense tensors on each of three ranks, and what any of them needs beside that."""
    run_ok("synth", tmp_path / "ckpt", "--preset", "small", "--layers", 1, "--experts", 1)
    peak = {}
    for dense in ("each-rank", "once"):
        report = run_ok("load", tmp_path / "ckpt", "--dense", dense, "--json", ranks=3).json
        peak[dense] = [rank["peak_rss_bytes"] - rank["bytes_owned"] for rank in report["rank"]]
    assert max(peak["once"]) < max(peak["each-rank"]) + (64 << 20)
