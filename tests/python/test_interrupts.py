"""Ctrl-C, on a rank at work and on one that only waits: all ranks end, and say who was interrupted."""

import signal
import time

import pytest

import rankslice


@pytest.mark.parametrize("interrupted", [0, 2], ids=["at work", "waiting"])
def test_one_rank_is_interrupted_and_all_end_together_with_their_group_whole(start_ranks, interrupted):
    job = start_ranks("interrupted.py", 3)
    for rank in range(3):
        job.wait_for(rank, "here")
    job.send(interrupted, signal.SIGINT)
    for rank, ended in enumerate(job.end(timeout=60)):
        assert ended.code == 0, ended.output
        assert ended.result["group_works"]
        if rank == interrupted:
            assert ended.result["ended"]["type"] == "KeyboardInterrupt"
        else:
            error = ended.result["ended"]
            assert (error["type"], error["code"], error["rank"]) == ("Interrupted", 130, interrupted)


def test_where_the_others_never_come_a_second_interrupt_ends_the_process(start_ranks):
    job = start_ranks("waiting.py", 2)
    for rank in (0, 1):
        job.wait_for(rank, "here")
    job.send(1, signal.SIGINT)
    time.sleep(2)  # until it is no repetition of the first
    assert job.processes[1].poll() is None, "the first waits for an agreement"
    job.send(1, signal.SIGINT)
    assert job.end_of(1, timeout=30).code == -signal.SIGINT


def test_a_rank_that_works_alone_raises_keyboard_interrupt(start_ranks, tiny):
    job = start_ranks("one_rank.py", 1, tiny)
    job.wait_for(0, "here")
    job.send(0, signal.SIGINT)
    (rank,) = job.end(timeout=60)
    assert rank.code == 0 and rank.result == {"type": "KeyboardInterrupt", "message": ""}


def test_what_a_rank_that_was_asked_to_exit_leaves_is_taken_over(run_ranks, tiny, tmp_path):
    reports = run_ranks("stopped_export.py", 2, tiny, tmp_path / "out")
    waiting, asked = (report["stopped"] for report in reports)
    assert asked == {"type": "SystemExit", "message": "143", "code": 143}
    assert (waiting["type"], waiting["code"], waiting["rank"]) == ("Interrupted", 130, 1)
    assert not any(report["left"] for report in reports)
    resumed = reports[0]["finished"]["resumed"]
    assert resumed == reports[1]["finished"]["resumed"]
    assert 0 < resumed["segments"] < resumed["of"] == 4
    written = sum(report["finished"]["bytes_written"] for report in reports)
    assert resumed["bytes"] + written == rankslice.inspect(tiny)["bytes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_call_that_finds_nothing_to_go_on_with_says_so(tiny, tmp_path):
    assert rankslice.to_hf(rankslice.load(tiny), tmp_path / "out", resume=True).resumed is None
