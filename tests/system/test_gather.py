"""`to-hf --gather`: rank 0 writes what all ranks read. The same folder as when all write, on one node that can."""

import os
import re
import signal

import pytest

import checkpoints
import reference
from program import OnRank, Run, leftovers, run, run_ok
from system_calls import TRACE, tensor_bytes, times_read
from variants import Variant

TENSOR_WRITE = r'pwrite64\(\d+<[^>]*\.partial-[^>]*>, ""\.\.\., \d{5,}'


def assert_same_folder(expected, out):
    wrong = checkpoints.folder_differences(expected, out)
    assert not wrong, "\n".join(wrong)


VARIANTS = {
    "qwen3_5_moe": Variant("qwen3_5_moe", experts=5, split_mtp=True),
    "qwen3_vl_moe": Variant("qwen3_vl_moe", layout="transformers", odd=True),
    "qwen3_moe": Variant("qwen3_moe", split_decoder=True),
    "qwen3_next": Variant("qwen3_next", split_decoder=True, split_mtp=True),
    "qwen3_5_moe in FP8": Variant("qwen3_5_moe", split_decoder=True, split_mtp=True, fp8="decoder mtp dense"),
    "qwen3_vl_moe in FP8": Variant("qwen3_vl_moe", fp8="decoder dense"),
}


@pytest.fixture(scope="module", params=["store", "2 x 2 shards", "shards of replicas"])
def stored(request, mini, mini_store, tmp_path_factory):
    if request.param == "store":
        return mini_store
    folder = tmp_path_factory.mktemp("stored") / "shards"
    mesh = ["--ep", 2, *(["--ep-shard", 2] if request.param == "2 x 2 shards" else [])]
    run_ok("load", mini, *mesh, "--save-shards", folder, ranks=4)
    return folder


@pytest.mark.parametrize("ranks", [None, 3, 4])
def test_from_everything_that_is_stored(mini, stored, ranks, tmp_path):
    run_ok("to-hf", stored, tmp_path / "out", "--gather", ranks=ranks)
    assert_same_folder(mini, tmp_path / "out")
    assert not leftovers(tmp_path / "out")


@pytest.mark.parametrize("variant", VARIANTS)
def test_from_every_variant_as_without_it(variant, tmp_path):
    source = VARIANTS[variant].write(tmp_path / "ckpt")
    run_ok("to-hf", source, tmp_path / "direct", ranks=2)
    run_ok("to-hf", source, tmp_path / "out", "--gather", ranks=3)
    assert_same_folder(tmp_path / "direct", tmp_path / "out")
    run_ok("to-hf", source, tmp_path / "as_before", "--gather", "--export-layout", "source", ranks=3)
    assert_same_folder(source, tmp_path / "as_before")


@pytest.mark.parametrize(
    "options",
    [["--dtype", "float32"], ["--include", ".*experts"], ["--gdn-dtype", "upstream"]],
    ids=["dtype", "selection", "gdn"],
)
def test_with_options_as_without_it(options, mini, tmp_path):
    run_ok("to-hf", mini, tmp_path / "direct", *options, ranks=2)
    run_ok("to-hf", mini, tmp_path / "out", "--gather", *options, ranks=4)
    assert_same_folder(tmp_path / "direct", tmp_path / "out")


def test_the_report_says_who_wrote(mini, tmp_path):
    report = run_ok("to-hf", mini, tmp_path / "out", "--gather", "--json", ranks=3).json
    direct = run_ok("to-hf", mini, tmp_path / "direct", "--json", ranks=3).json
    assert (report["choices"]["writers"], direct["choices"]["writers"]) == ("rank 0", "all ranks")
    for count in ("read", "written"):
        assert report["bytes"][count] == direct["bytes"][count] > 0
    assert all(rank["bytes_read"] > 0 for rank in report["rank"])


# What each rank touches ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("strace")
def test_the_other_ranks_do_not_even_look_for_the_output(mini, tmp_path):
    out = tmp_path / "out"
    on_rank = OnRank(tmp_path / "ranks", traced="all", strace="-e trace=%file")
    run_ok("to-hf", mini, out, "--gather", ranks=3, on_rank=on_rank)
    about_it = [
        [line for trace in on_rank.traces(rank) for line in trace.read_text().splitlines() if str(out) in line]
        for rank in range(3)
    ]
    # The program is told the path; it must not use it.
    used = [[line for line in lines if not line.startswith("execve(")] for lines in about_it]
    assert used[0] and not used[1] and not used[2], used[1:]


@pytest.mark.usefixtures("strace")
def test_every_tensor_byte_is_read_by_one_rank(mini, tmp_path):
    on_rank = OnRank(tmp_path / "ranks", traced="all", strace=TRACE)
    run_ok("to-hf", mini, tmp_path / "out", "--gather", ranks=3, on_rank=on_rank)
    files = reference.shard_files(mini)
    times = [times_read(on_rank, rank, files) for rank in range(3)]
    for file, mask in tensor_bytes(mini).items():
        assert (sum(of_rank[file] for of_rank in times)[mask] == 1).all(), file
    assert all(any(counts.any() for counts in of_rank.values()) for of_rank in times)


# Ranks that fail ----------------------------------------------------------------------------------------------------


def assert_nothing_made(out):
    assert not out.exists()
    assert not leftovers(out)


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize(
    ("rank", "call", "fault", "codes", "words"),
    [
        (0, "pwrite64", "error=ENOSPC:when=9", {73, 74}, "No space left on device"),
        (0, "pwrite64", "retval=2:when=9", {3}, "reads back differently"),
        (0, "fsync,fdatasync", "error=EIO:when=3", {74}, "Input/output error"),
        (2, "pread64", "error=EIO:when=4", {74}, "Input/output error"),
    ],
    ids=["ENOSPC of the writer", "a write that lies", "a sync that fails", "EIO of a sender"],
)
def test_a_rank_that_fails_ends_all_with_its_code(rank, call, fault, codes, words, mini, tmp_path):
    paths = [f"-P {path}" for path in reference.shard_files(mini.resolve())] if call == "pread64" else []
    strace = " ".join([f"-e trace={call} -e inject={call}:{fault}", *paths])
    on_rank = OnRank(tmp_path / "ranks", traced=str(rank), strace=strace, codes=True)
    result = run("to-hf", mini, tmp_path / "out", "--gather", ranks=4, on_rank=on_rank)
    assert len(result.rank_codes) == 4 and len(set(result.rank_codes.values())) == 1, result.rank_codes
    assert result.rank_codes[0] in codes, result.stderr
    assert result.stderr.count(words) == 1 and re.search(rf"\brank {rank}\b", result.stderr), result.stderr
    assert_nothing_made(tmp_path / "out")


def in_the_middle(ckpt, tmp_path, **how):
    """An export whose writer is slow, and what is known of its ranks."""
    strace = "-e trace=pwrite64 -e inject=pwrite64:delay_enter=30ms"
    on_rank = OnRank(tmp_path / "ranks", traced="0", strace=strace, codes=how.pop("codes", False))
    arguments = ["to-hf", ckpt, tmp_path / "out", "--gather", *how.pop("options", [])]
    return Run(*arguments, ranks=4, on_rank=on_rank), on_rank


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("victim", [0, 2], ids=["the writer", "a sender"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_ends_the_job(victim, number, tiny, tmp_path):
    job, on_rank = in_the_middle(tiny, tmp_path, options=["--timeout", 3])
    with job:
        on_rank.wait_for_call(0, TENSOR_WRITE)
        os.kill(on_rank.pid(victim), number)
        result = job.finish()
    assert result.code not in (0, 1), result.stderr
    if number == signal.SIGSTOP:
        assert result.code == 75, result.stderr
        assert re.search(rf"\branks?(\(s\))? {victim}\b", result.stderr), result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("strace")
def test_a_sender_that_is_told_to_stop_ends_all(tiny, tmp_path):
    job, on_rank = in_the_middle(tiny, tmp_path, codes=True)
    with job:
        on_rank.wait_for_call(0, TENSOR_WRITE)
        os.kill(on_rank.pid(3), signal.SIGTERM)
        result = job.finish()
    assert result.rank_codes == dict.fromkeys(range(4), 143), result.stderr
    assert_nothing_made(tmp_path / "out")


# Of (sent, received), in experts, the most of any of the ranks. With replicas, expert 0 to 5 are sent by ranks 0, 4, 9,
# 1, 6 and 11: those of experts 2 and 5 are on the second host.
TRAFFIC = {
    "--ranks 1": {"to_one": (0, 0), "to_hosts": (0, 0), "to_all": (0, 0)},
    "--ranks 3": {"to_one": (2, 4), "to_hosts": (2, 4), "to_all": (2, 4)},
    "--ranks 2 --ep 1 --ep-shard 2": {"to_one": (3, 3), "to_hosts": (3, 3), "to_all": (3, 3)},
    "--ranks 12 --ep 4": {"to_one": (1, 4), "to_hosts": (4, 6), "to_all": (1, 6)},
}


@pytest.mark.parametrize("ranks", TRAFFIC)
def test_plan_says_what_gathering_passes_between_ranks(mini, mini_tensors, ranks):
    experts = 6
    of_expert = sum(t.bits.nbytes for key, t in mini_tensors.items() if ".mlp.experts." in key) // experts
    found = run_ok("plan", mini, *ranks.split(), "--json").json["gather"]
    del found["of_checkpoint"]
    assert found["to_hosts"].pop("ranks_per_host") == 8
    assert found == {
        route: {"sent_bytes": sent * of_expert, "received_bytes": received * of_expert}
        for route, (sent, received) in TRAFFIC[ranks].items()
    }


def test_plan_says_what_each_rank_sends_when_a_checkpoint_is_exported(tmp_path):
    """What they read of it, which is what they send; here all of it has the dtype in memory that it has in the file."""
    ckpt = VARIANTS["qwen3_moe"].write(tmp_path / "ckpt")
    planned = run_ok("plan", ckpt, "--ranks", 3, "--json").json["gather"]["of_checkpoint"]["rank"]
    read = run_ok("to-hf", ckpt, tmp_path / "out", "--gather", "--json", ranks=3).json["rank"]
    assert [rank["rank"] for rank in planned] == [0, 1, 2]
    assert [rank["bytes_sent"] for rank in planned] == [0, read[1]["bytes_read"], read[2]["bytes_read"]]
    received = read[1]["bytes_read"] + read[2]["bytes_read"]
    assert [rank["bytes_received"] for rank in planned] == [received, 0, 0]
