"""`--log-format json`: every line of the program on stderr is an object, from whichever rank, whatever goes wrong."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

import checkpoints
from program import OnRank, Run, expect, run_ok, wait_until

JSON_LOG = ["--log-format", "json"]
LEVELS = {"debug", "info", "warning", "error"}


def is_of_mpi(line):
    """What mpirun says when ranks end, and its library when it is told to abort, is not ours."""
    return not line.startswith("{")


def entries(result, of_mpi=False):
    lines = result.stderr.splitlines()
    if of_mpi:
        lines = [line for line in lines if not is_of_mpi(line)]
    found = [json.loads(line) for line in lines]
    for entry in found:
        assert list(entry)[-1] == "message" or list(entry)[-2:] == ["done_bytes", "total_bytes"], entry
        assert entry["level"] in LEVELS and entry["message"] and isinstance(entry["rank"], int)
        assert entry["host"] == socket.gethostname()
        if "time" in entry:
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
    return found


def errors(found):
    return [entry for entry in found if entry["level"] == "error"]


def test_each_line_says_when_who_and_where(mini, tmp_path):
    found = entries(run_ok("load", mini, "--store", tmp_path / "s.h5", "-v", *JSON_LOG, ranks=3))
    assert {entry["rank"] for entry in found} == {0}
    times = [entry["time"] for entry in found]
    assert times == sorted(times)
    for phase in ("load", "verify", "store"):
        assert [entry for entry in found if entry["message"].startswith(phase)], phase


def test_progress_has_its_bytes(tiny, tmp_path, strace):
    slow = OnRank(tmp_path / "on_rank", traced="0", strace="-e trace=pread64 -e inject=pread64:delay_enter=200000")
    found = entries(run_ok("load", tiny, *JSON_LOG, "--progress", "on", on_rank=slow, timeout=120))
    progress = [entry for entry in found if "done_bytes" in entry]
    assert progress, "not one line: the reads were too quick"
    for entry in progress:
        assert entry["phase"] == "load" and 0 < entry["done_bytes"] <= entry["total_bytes"]


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--ep", "none"], ["--verify", "nonsense"], []])
@pytest.mark.parametrize("form", [["--log-format", "json"], ["--log-format=json"], "environment"])
def test_errors_of_the_command_line_have_that_form_too(form, arguments):
    options, env = ([], {"RANKSLICE_LOG_FORMAT": "json"}) if form == "environment" else (form, {})
    (entry,) = entries(expect(2, "load", *arguments, *options, env=env))
    assert entry["level"] == "error" and "rankslice load --help" in entry["message"]


def test_a_command_that_does_not_exist_is_told_in_that_form():
    (entry,) = entries(expect(2, "laod", env={"RANKSLICE_LOG_FORMAT": "json"}))
    assert "no such command" in entry["message"]


def test_text_stays_text_whatever_else_says_json():
    assert expect(2, "load", "--log-format", "text", env={"RANKSLICE_LOG_FORMAT": "json"}).stderr.startswith(
        "rankslice: "
    )


def test_an_error_of_all_ranks_names_the_phase(broken):
    checkpoints.edit_json(broken / "model.safetensors.index.json", lambda content: content["weight_map"].popitem())
    (entry,) = errors(entries(expect(65, "load", broken, *JSON_LOG, ranks=3), of_mpi=True))
    assert (entry["rank"], entry["phase"]) == (0, "open")


def test_a_wrong_launch_is_told_in_that_form(mini):
    (entry,) = entries(expect(78, "load", mini, *JSON_LOG, env={"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}))
    assert "srun" in entry["message"]


def test_a_rank_by_itself_names_itself(mini):
    found = entries(run_ok("load", mini, "--rank", 2, "--ranks", 3, *JSON_LOG))
    assert found and {entry["rank"] for entry in found} == {2}


def test_ranks_that_give_up_on_a_stopped_one_say_so_in_that_form(tiny, tmp_path, strace):
    on_rank = OnRank(tmp_path / "on_rank", strace={2: "-e trace=pread64 -e inject=pread64:delay_enter=100000"})
    with Run("load", tiny, "--timeout", 2, *JSON_LOG, ranks=3, on_rank=on_rank) as running:
        on_rank.wait_for_call(2, "safetensors")
        os.kill(on_rank.pid(2), signal.SIGSTOP)
        result = running.finish()
    told = errors(entries(result, of_mpi=True))
    assert [entry for entry in told if "no answer from rank(s) 2" in entry["message"]], result.stderr
    assert "rankslice: error" not in result.stderr


def is_held(pid):
    """Whether the tracer keeps a process from going on, and not just for a moment."""
    for _ in range(20):
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "t":
            return False
        time.sleep(0.02)
    return True


def test_a_rank_that_ends_itself_says_so_in_that_form(tiny, tmp_path, strace):
    """One read that never returns, and nobody else to notice: the watchdog writes what was prepared, without a time."""
    on_rank = OnRank(
        tmp_path / "on_rank", strace={0: "-e trace=pread64 -e inject=pread64:delay_enter=15000000:when=20", 1: ""}
    )
    with Run("load", tiny, "--timeout", 1, *JSON_LOG, ranks=2, on_rank=on_rank) as running:
        wait_until(lambda: is_held(on_rank.pid(0)), 60, "rank 0 to hang in its read")
        os.kill(on_rank.pid(1), signal.SIGSTOP)
        result = running.finish()
    told = errors(entries(result, of_mpi=True))
    (entry,) = [entry for entry in told if "no progress within" in entry["message"]]
    assert entry["rank"] == 0 and "time" not in entry
    assert "rankslice: error" not in result.stderr


def test_names_that_are_no_text_are_told_all_the_same(tmp_path):
    (entry,) = entries(expect(66, "load", os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"), *JSON_LOG))
    assert "�" in entry["message"]
