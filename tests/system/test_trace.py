"""`--trace`: what every rank did when, in the trace event format."""

import json
import os
import signal
from collections import defaultdict

import pytest

import checkpoints
from program import OnRank, Run, expect, run_ok

REQUIRED = {"X": {"name", "cat", "ph", "ts", "dur", "pid", "tid"}, "M": {"name", "ph", "pid", "tid", "args"}}


def read(path):
    """{rank: its events}, {rank: its name}, and what is said about the run."""
    document = json.loads(path.read_text())
    events, rows = defaultdict(list), {}
    for event in document["traceEvents"]:
        assert REQUIRED[event["ph"]] <= set(event)
        if event["ph"] == "X":
            assert event["dur"] >= 0
            events[event["pid"]].append(event)
        elif event["name"] == "process_name":
            rows[event["pid"]] = event["args"]["name"]
    assert set(events) <= set(rows)
    return events, rows, document["otherData"]


def require_nested(events):
    """Of two events in a row, one is inside the other, or they do not touch: else viewers draw nonsense."""
    ordered = sorted(events, key=lambda event: (event["ts"], -event["dur"]))
    open_until = []
    for event in ordered:
        begin, end = event["ts"], event["ts"] + event["dur"]
        while open_until and open_until[-1] <= begin + 1e-3:  # times have nanoseconds
            open_until.pop()
        assert not open_until or end <= open_until[-1] + 1e-3, event
        open_until.append(end)


def phases(events):
    return {event["name"]: event for event in events if event["cat"] == "phase"}


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_rank_has_a_row_that_adds_up_to_the_report(ranks, mini, tmp_path):
    path = tmp_path / "t.json"
    report = run_ok("load", mini, "--store", tmp_path / "s.h5", "--trace", path, "--json", ranks=ranks).json
    events, rows, about = read(path)
    assert about["command"] == "load" and "error" not in about
    assert rows == {entry["rank"]: f"rank {entry['rank']} on {entry['host']}" for entry in report["rank"]}
    assert set(events) == set(range(ranks))
    for rank in events:
        require_nested(events[rank])
    for phase, seconds in report["seconds"].items():
        if phase != "total":  # the slowest rank's
            assert max(phases(of_rank)[phase]["dur"] for of_rank in events.values()) == pytest.approx(seconds * 1e6)
    assert set(phases(events[0])) == set(report["seconds"]) - {"total"}


def test_blocks_add_up_to_the_bytes_of_each_rank(mini, tmp_path):
    path = tmp_path / "t.json"
    report = run_ok("load", mini, "--trace", path, "--json", ranks=3).json
    events, _, _ = read(path)
    for entry in report["rank"]:
        (blocks,) = [event for event in events[entry["rank"]] if event["name"] == "load blocks"]
        assert blocks["args"]["bytes"] == entry["bytes_read"]
        assert blocks["args"]["blocks"] > 0
        assert 0 < blocks["args"]["longest_block_us"] <= blocks["dur"] * (1 + 1e-9)
        load = phases(events[entry["rank"]])["load"]
        assert load["ts"] <= blocks["ts"] and blocks["ts"] + blocks["dur"] <= load["ts"] + load["dur"] + 1e-3


def test_times_of_the_ranks_are_on_one_clock(mini, tmp_path):
    """No rank begins to verify before every other one has begun to load: between them the ranks meet."""
    path = tmp_path / "t.json"
    run_ok("load", mini, "--trace", path, ranks=3)
    events, _, _ = read(path)
    last_begin = max(phases(of_rank)["load"]["ts"] for of_rank in events.values())
    assert last_begin >= 0
    for of_rank in events.values():
        assert phases(of_rank)["verify"]["ts"] >= last_begin


def test_waiting_for_a_slow_rank_shows_on_the_others(mini, tmp_path, strace):
    """Rank 1 reads slowly, so rank 0 waits: inside the phase, where the ranks agree."""
    path = tmp_path / "t.json"
    slow = OnRank(tmp_path / "on_rank", strace={1: "-e trace=pread64 -e inject=pread64:delay_enter=20000"})
    run_ok("load", mini, "--trace", path, ranks=2, on_rank=slow)
    events, _, _ = read(path)
    blocks = {rank: next(event for event in events[rank] if event["name"] == "load blocks")["dur"] for rank in events}
    assert blocks[1] > blocks[0]


def test_a_rank_by_itself_is_on_its_own_row(mini, tmp_path):
    run_ok("load", mini, "--rank", 2, "--ranks", 3, "--trace", tmp_path / "t.json")
    events, _, _ = read(tmp_path / "t.json")
    assert list(events) == [2]


@pytest.mark.parametrize("command", ["verify", "to-hf"])
def test_trace_of_every_command_of_ranks(command, mini, tmp_path):
    output = [tmp_path / "out"] if command == "to-hf" else []
    run_ok(command, mini, *output, "--trace", tmp_path / "t.json", ranks=2)
    events, _, about = read(tmp_path / "t.json")
    assert about["command"] == command
    for rank in range(2):
        assert {"open", command.replace("-", "_")} <= set(phases(events[rank]))


def test_a_failed_run_leaves_the_trace_of_all_ranks(broken, tmp_path):
    checkpoints.edit_json(broken / "model.safetensors.index.json", lambda content: content["weight_map"].popitem())
    path = tmp_path / "t.json"
    result = expect(65, "load", broken, "--trace", path, ranks=3)
    events, rows, about = read(path)
    assert set(rows) == set(events) == {0, 1, 2}
    assert about["error"]["code"] == 65 and about["error"]["message"] in result.stderr
    for of_rank in events.values():
        require_nested(of_rank)
        assert phases(of_rank)["load"]["args"]["failed"] and phases(of_rank)["open"]["args"]["failed"]


def test_an_interrupted_run_leaves_its_trace(tiny, tmp_path, strace):
    path = tmp_path / "t.json"
    slow = OnRank(tmp_path / "on_rank", traced="all", strace="-e trace=pread64 -e inject=pread64:delay_enter=100000")
    with Run("load", tiny, "--trace", path, ranks=2, on_rank=slow) as running:
        slow.wait_for_call(1, "safetensors")
        os.kill(slow.pid(1), signal.SIGTERM)
        running.finish()
    events, _, about = read(path)
    assert about["error"]["code"] == 143
    assert set(events) == {0, 1}


def test_the_ranks_trace_together_or_not_at_all(mini, tmp_path):
    on_rank = OnRank(tmp_path / "on_rank", rank_1_sets=f"RANKSLICE_TRACE={tmp_path / 't.json'}")
    expect(2, "load", mini, ranks=2, on_rank=on_rank, says="--trace")
