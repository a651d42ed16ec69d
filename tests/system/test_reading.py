"""How files are read: the same bytes whichever way, no more of them than planned, and with few calls."""

import os
import re
import subprocess

import numpy as np
import pytest

import checkpoints
import reference
from program import MPIEXEC, MPIEXEC_OPTIONS, PROGRAM, OnRank, run, run_ok
from system_calls import TRACE, TRACE_OPENING, tensor_bytes, times_read, uring_or_skip
from test_reads import own_bytes

WAYS = ["pread", "io_uring", "direct"]
BLOCK = 1 << 20
SECTOR = 512  # what the system counts block input in, whatever the device


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A checkpoint of 14 MB."""
    folder = tmp_path_factory.mktemp("stored") / "ckpt"
    run_ok("synth", folder, "--preset", "tiny")
    return folder


def cool(folder):
    """Let the page cache forget the tensors; skips where it does not."""
    for path in reference.shard_files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if block_input("inspect", folder) == 0:
        pytest.skip("this file system keeps files in memory")
    for path in reference.shard_files(folder):  # the headers, which inspect has read, and what was read with them
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def block_input(*arguments, ranks=None):
    """Bytes that a run brought from disks, as the kernel counted them for its processes."""
    launcher = [MPIEXEC, *MPIEXEC_OPTIONS, "-n", str(ranks)] if ranks else []
    command = [*launcher, PROGRAM, *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    assert status == 0
    return usage.ru_inblock * SECTOR


def is_in_memory(folder):
    return subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout == "tmpfs\n"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("cache", ["keep", "drop"])
@pytest.mark.parametrize("way", WAYS)
def test_the_same_bytes_arrive_whichever_way(way, cache, ranks, stored, tmp_path):
    if way == "io_uring":
        uring_or_skip()
    cool(stored)
    result = run_ok(
        "load", stored, "--io", way, "--cache", cache, "--save-shards", tmp_path / "s", "--json", ranks=ranks
    )
    assert result.json["choices"]["io"] == ("pread" if is_in_memory(stored) and way == "direct" else way)
    run_ok("to-hf", tmp_path / "s", tmp_path / "out")
    assert not checkpoints.folder_differences(stored, tmp_path / "out")


def test_what_the_page_cache_lacks_is_read_past_it_and_what_it_has_is_not(stored):
    uring_or_skip()
    cool(stored)
    first = run_ok("load", stored, "--verify", "off", "-v", "--json")
    if first.json["choices"]["io"] != "direct":
        pytest.skip("not on a local disk")
    assert re.search(r"reading  direct: 100 % are not in the page cache, but on a local disk", first.stderr)
    for path in reference.shard_files(stored):
        path.read_bytes()
    second = run_ok("load", stored, "--verify", "off", "-v", "--json")
    assert second.json["choices"]["io"] == "pread"
    assert "reading  pread: the page cache has all of it" in second.stderr


@pytest.mark.parametrize(("rank", "ranks"), [(0, 1), (0, 2), (1, 2), (0, 4), (3, 4)])
def test_a_rank_brings_from_the_disk_once_what_it_holds_and_nothing_of_others(rank, ranks, stored):
    """Past the page cache, where the kernel counts each read, those of io_uring too, which strace does not see."""
    uring_or_skip()
    owned = own_bytes(stored, reference.read_folder(stored), reference.Mesh(1, ranks), rank)
    cool(stored)
    headers = block_input("inspect", stored)  # cold from `cool`, with what the system reads ahead of them
    cool(stored)
    alone = ["--rank", rank, "--ranks", ranks, "--threads", 1]
    brought = block_input("load", stored, "--verify", "off", *alone, "--io", "direct")
    total = sum(int(mask.sum()) for mask in owned.values())
    runs = sum(int(np.diff(mask.astype("i1"), prepend=0).clip(0).sum()) for mask in owned.values())
    assert total <= brought <= total + headers + runs * 2 * 4096


@pytest.mark.usefixtures("strace")
def test_reads_by_io_uring_are_no_more_than_there_are_blocks(stored, tmp_path):
    """Through the page cache, where reading twice would bring nothing more from the disk."""
    uring_or_skip()
    on_rank = OnRank(tmp_path, traced="0", strace="-f -e trace=io_uring_enter")
    run_ok("load", stored, "--verify", "off", "--threads", 1, "--io", "io_uring", on_rank=on_rank)
    calls = "".join(trace.read_text() for trace in on_rank.traces(0))
    made = sum(map(int, re.findall(r"io_uring_enter\(.*= (\d+)$", calls, re.MULTILINE)))
    sizes = [int(mask.sum()) for mask in tensor_bytes(stored).values()]
    assert sum(sizes) / BLOCK <= made <= sum(-(-size // BLOCK) + 1 for size in sizes) + 1, "and one to see if they work"


@pytest.mark.parametrize("mesh", [["--ep", 2], ["--ep", 4], ["--ep", 2, "--ep-shard", 2]], ids=str)
@pytest.mark.parametrize("cache", ["keep", "drop"])
def test_ranks_of_one_host_bring_from_the_disk_once_what_all_of_them_hold(mesh, cache, stored):
    ranks = 4 if mesh != ["--ep", 2] else 2
    size = sum(path.stat().st_size for path in reference.shard_files(stored))
    block_input("inspect", stored, ranks=ranks)  # what the launcher itself reads
    cool(stored)
    brought = block_input("load", stored, "--verify", "off", *mesh, "--cache", cache, ranks=ranks)
    assert brought < 1.5 * size, "what the system reads on behind small tensors apart"


@pytest.mark.usefixtures("strace")
def test_direct_reads_get_each_page_once(stored, tmp_path):
    """Where io_uring is forbidden they are made by pread, and so seen by strace."""
    on_rank = OnRank(tmp_path, traced="0", strace=TRACE + " -e inject=io_uring_setup:error=EPERM")
    run_ok("load", stored, "--verify", "off", "--threads", 1, "--io", "direct", on_rank=on_rank)
    counts = times_read(on_rank, 0, reference.shard_files(stored))
    for file, mask in tensor_bytes(stored).items():
        in_tensors = counts[file][mask]
        assert in_tensors.min() == 1 and in_tensors[4096:].max() == 1, file  # the header's page has tensor bytes too


@pytest.fixture(scope="module")
def inputs(stored, tmp_path_factory):
    """Name -> what a command is given, and the folder whose tensors it reads."""
    folder = tmp_path_factory.mktemp("inputs")
    run_ok("load", stored, "--save-shards", folder / "shards", ranks=2)
    run_ok("synth", folder / "fp8", "--preset", "tiny", "--quantization", "fp8", "--layers", 2)
    run_ok("load", folder / "fp8", "--store", folder / "fp8.h5")
    return {
        "checkpoint": (stored, stored),
        "shards": (folder / "shards", folder / "shards"),
        "store": (folder / "fp8.h5", folder / "fp8"),
    }


COMMANDS = {
    "load": ["load", "checkpoint"],
    "verify": ["verify", "checkpoint"],
    "verify, copies": ["verify", "shards"],
    "to-hf": ["to-hf", "checkpoint", "{out}"],
    "to-hf, gathered": ["to-hf", "checkpoint", "{out}", "--gather"],
    "to-hf, converted": ["to-hf", "checkpoint", "{out}", "--dtype", "float32"],
    "to-hf, copied": ["to-hf", "store", "{out}", "--export-layout", "source", "--source", "{folder}"],
}


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_reads_tensors_past_the_page_cache_when_it_is_told_to(command, ranks, inputs, tmp_path):
    """By pread, which strace sees; one rank alone reads each page of a checkpoint once."""
    name, which, *rest = command
    given, folder = inputs[which]
    if is_in_memory(folder):
        pytest.skip("this file system keeps files in memory")
    on_rank = OnRank(tmp_path, traced="all", strace=TRACE_OPENING + " -e inject=io_uring_setup:error=EPERM")
    rest = [argument.format(out=tmp_path / "out", folder=folder) for argument in rest]
    result = run_ok(name, given, *rest, "--io", "direct", "--json", "-v", ranks=ranks, on_rank=on_rank)
    assert result.json["choices"]["io"] == "direct"
    assert "reading  direct: as asked for, one after the other: " in result.stderr
    shards = reference.shard_files(folder)
    headers = {path.name: len(reference.raw_header(path)) for path in shards}
    reads = 0
    for rank in range(ranks):
        everything, direct = (times_read(on_rank, rank, shards, past_page_cache=past) for past in (False, True))
        for file, begin in headers.items():
            reads += int(direct[file][begin:].sum())
            assert np.array_equal(direct[file][begin:], everything[file][begin:]), f"rank {rank}, {file}"
            assert which != "checkpoint" or ranks > 1 or (direct[file][begin:] == 1).all(), file
    assert reads > 0


@pytest.mark.parametrize("command", ["load", "verify", "to-hf"])
def test_every_command_tells_how_it_has_read(command, stored, tmp_path):
    output = [tmp_path / "out"] if command == "to-hf" else []
    if command != "load":  # whose dry run lists a plan
        assert run_ok(command, stored, *output, "--dry-run", "--json").json["choices"]["io"] is None
    for path in reference.shard_files(stored):
        path.read_bytes()
    result = run_ok(command, stored, *output, "--json", "-v")
    assert result.json["choices"]["io"] == "pread"
    total = sum(int(mask.sum()) for mask in tensor_bytes(stored).values())
    assert f"reading  pread: the page cache has all of it; {total / 1e6:.1f} MB wanted, " in result.stderr


def test_several_ways_are_told_by_their_bytes(stored):
    """A thread has the first half of the bytes, which are not in the page cache, and another one the rest."""
    uring_or_skip()
    cool(stored)
    for path in reference.shard_files(stored)[2:]:
        path.read_bytes()
    result = run_ok("load", stored, "--verify", "off", "--threads", 2, "--json", "-v")
    if "direct" not in result.json["choices"]["io"]:
        pytest.skip("not on a local disk")
    told = re.findall(r"reading  (\w+): (.*); [\d.]+ MB wanted, [\d.]+ MB read(.*)", result.stderr)
    assert {way for way, _, _ in told} == set(result.json["choices"]["io"].split(", "))
    assert told[1][2] == ", by 2 threads"
    why = {way: reason for way, reason, _ in told}
    assert re.match(r"\d+ % are not in the page cache, but on a local disk", why["direct"])
    assert why["pread"] == "the page cache has nearly all of it"
    cool(stored)
    for path in reference.shard_files(stored)[2:]:
        path.read_bytes()
    of_one_thread = run_ok("load", stored, "--verify", "off", "--threads", 1, "--json").json
    assert set(of_one_thread["choices"]["io"].split(", ")) == {"direct", "pread"}


@pytest.mark.parametrize("command", ["load", "verify", "to-hf"])
def test_every_command_lets_the_page_cache_forget_what_it_read(command, stored, tmp_path):
    cool(stored)
    total = sum(int(mask.sum()) for mask in tensor_bytes(stored).values())
    output = [tmp_path / "out"] if command == "to-hf" else []
    run_ok(command, stored, *output, "--io", "pread", "--cache", "drop")
    assert block_input("load", stored, "--verify", "off", "--io", "pread") > 0.9 * total, "all but edges once more"


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("way", WAYS)
def test_a_load_makes_few_system_calls(way, stored, tmp_path):
    """For 1 GB: at most 2,100 preads of 512 KiB, or 2,100 entries into io_uring for blocks of 1 MiB."""
    if way == "io_uring":
        uring_or_skip()
    calls = "pread64,io_uring_enter,io_uring_setup"
    on_rank = OnRank(tmp_path, traced="0", strace=f"-f -e trace={calls}")
    run_ok("load", stored, "--verify", "off", "--threads", 1, "--io", way, on_rank=on_rank)
    made = sum(trace.read_text().count("(") for trace in on_rank.traces(0))
    tensors, total = len(reference.extents(stored)), sum(int(mask.sum()) for mask in tensor_bytes(stored).values())
    headers = 4 * len(reference.shard_files(stored))
    assert made <= 2.1 * total / BLOCK + headers + (tensors if way == "pread" else 0)


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("error", ["EAGAIN", "EBUSY", "EINTR"])
def test_reads_that_the_kernel_does_not_take_at_once_are_taken_later(error, stored, tmp_path):
    uring_or_skip()
    inject = f"-f -e trace=io_uring_enter -e inject=io_uring_enter:error={error}:when=2..9"  # the first one is a try
    on_rank = OnRank(tmp_path, traced="0", strace=inject)
    run_ok("load", stored, "--threads", 1, "--io", "io_uring", "--save-shards", tmp_path / "s", on_rank=on_rank)
    assert "".join(trace.read_text() for trace in on_rank.traces(0)).count("(INJECTED)") == 8
    run_ok("to-hf", tmp_path / "s", tmp_path / "out")
    assert not checkpoints.folder_differences(stored, tmp_path / "out")


@pytest.mark.usefixtures("strace")
def test_a_thread_that_gets_no_ring_reads_one_after_the_other_and_says_so(stored, tmp_path):
    uring_or_skip()
    thirds = "-f -e trace=io_uring_setup -e inject=io_uring_setup:error=ENOMEM:when=3+"  # two are tries
    on_rank = OnRank(tmp_path, traced="0", strace=thirds)
    result = run_ok("load", stored, "--verify", "off", "--threads", 1, "--io", "direct", "-v", on_rank=on_rank)
    assert "one after the other: io_uring: cannot be set up: Cannot allocate memory" in result.stderr


@pytest.mark.usefixtures("strace")
def test_io_uring_that_is_forbidden_is_an_error_when_asked_for_and_else_is_not_used(stored, tmp_path):
    on_rank = OnRank(tmp_path, traced="0", strace="-e trace=io_uring_setup -e inject=io_uring_setup:error=EPERM")
    result = run("load", stored, "--io", "io_uring", on_rank=on_rank)
    assert result.code == 74 and "files cannot be read by io_uring: it is forbidden here" in result.stderr
    cool(stored)
    assert run_ok("load", stored, "--verify", "off", "--json", on_rank=on_rank).json["choices"]["io"] == "pread"


def test_what_was_read_is_dropped_from_the_page_cache(stored):
    cool(stored)
    total = sum(int(mask.sum()) for mask in tensor_bytes(stored).values())
    run_ok("load", stored, "--verify", "off", "--io", "pread", "--cache", "drop")
    assert block_input("load", stored, "--verify", "off", "--io", "pread") > 0.9 * total, "all but edges once more"
    assert block_input("load", stored, "--verify", "off", "--io", "pread") == 0, "kept by default"
    run_ok("load", stored, "--verify", "off", "--io", "pread", "--cache", "drop")
    assert block_input("load", stored, "--verify", "off", "--io", "pread") == 0, "what was there before stays"
