"""Threads of a rank: as many as it has processors, or as it is told, and always with the same result."""

import os
import re
import shutil

import pytest

import checkpoints
import program
import reference
from program import run_ok
from reference import Mesh
from shards import assert_shards


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("threads", [1, 2, 5, 64])
def test_any_number_of_threads_loads_and_proves_the_same(mini, mini_tensors, threads, ranks, tmp_path):
    shards = tmp_path / "shards"
    result = run_ok("load", mini, "--threads", threads, "--save-shards", shards, "--json", ranks=ranks)
    assert_shards(shards, mini_tensors, Mesh(1, ranks))
    report = result.json
    assert report["choices"]["threads"] == threads
    assert [rank["threads"] for rank in report["rank"]] == [threads] * ranks
    assert report["bytes"]["read"] == report["bytes"]["wanted"]
    assert (report["verify"]["level"], report["verify"]["mismatches"]) == ("full", [])


def test_what_differs_is_found_by_any_number_of_threads(mini, mini_store, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(mini, changed)
    shard = reference.shard_files(changed)[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    found = []
    for threads in (1, 2, 7):
        result = program.expect(3, "verify", changed, "--against", mini_store, "--threads", threads, "--json")
        found.append(result.json["verify"]["mismatches"])
    assert len(found[0]) == 1 and found[1] == found[2] == found[0]


@pytest.mark.parametrize("ranks", [None, 2, 3])
def test_ranks_share_the_processors(mini, ranks):
    report = run_ok("load", mini, "--json", ranks=ranks).json
    processors = len(os.sched_getaffinity(0))  # of which a quota may give less
    assert 1 <= report["choices"]["threads"] <= max(1, processors // (ranks or 1))


def test_a_rank_that_may_use_one_processor_has_one_thread(mini):
    processor = min(os.sched_getaffinity(0))
    report = run_ok("load", mini, "--json", under=("taskset", "-c", processor)).json
    assert report["choices"]["threads"] == 1


@pytest.mark.parametrize(("variable", "says"), [("LOCAL_WORLD_SIZE", "{}"), ("SLURM_STEP_TASKS_PER_NODE", "1(x3),{}")])
def test_processes_that_load_alone_share_by_what_their_launcher_says(mini, variable, says):
    many = {variable: says.format(len(os.sched_getaffinity(0))), "RANK": "1", "WORLD_SIZE": "4"}
    report = run_ok("load", mini, "--rank", 1, "--ranks", 4, "--json", env=many).json
    assert report["choices"]["threads"] == 1


def threads_started(trace):
    return len(re.findall(r"clone3?\(.*CLONE_THREAD", trace.read_text()))


@pytest.fixture(scope="module")
def many_files(tmp_path_factory):
    """A checkpoint with more files than one thread opens where several may."""
    return checkpoints.write_mini(tmp_path_factory.mktemp("many") / "ckpt", shards=32)


def test_one_thread_starts_no_other(strace, many_files, tmp_path):
    for threads in (1, 3):
        under = ("strace", "-f", "-o", tmp_path / f"trace{threads}", "-e", "trace=clone,clone3")
        run_ok("load", many_files, "--threads", threads, under=under)
    assert threads_started(tmp_path / "trace1") == 0
    assert threads_started(tmp_path / "trace3") == 4 * 2, "two more to see that it gets them, to open, load and verify"


def test_threads_that_the_system_refuses_are_an_error_only_where_they_are_asked_for(strace, mini):
    refusing = ("strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=clone,clone3:error=EAGAIN")
    result = program.expect(2, "load", mini, "--threads", 3, under=refusing)
    assert "3 threads were asked for, and the system gives 1: " in result.stderr and "ulimit -u" in result.stderr
    report = run_ok("load", mini, "--json", under=refusing).json
    assert [rank["threads_reading"] for rank in report["rank"]] == [1]


def test_the_report_has_the_threads_that_read(mini):
    """At most one for each tensor; to-hf streams with one."""
    report = run_ok("load", mini, "--include", r".*norm\.weight", "--threads", 64, "--json").json
    assert 1 < report["rank"][0]["threads_reading"] < 64


def test_no_thread_at_all_is_wrong_usage(mini):
    assert "--threads" in program.expect(2, "load", mini, "--threads", 0).stderr
