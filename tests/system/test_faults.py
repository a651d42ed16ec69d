"""Ranks that die, stop or are told to stop, disks that are full or lie: an end in time, the documented code, and
nothing under the final name."""

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

import reference
from program import OnRank, Run, expect, leftovers, run, run_ok, wait_until

TENSOR_READ = r"pread64\(\d+<[^>]*\.safetensors>"
LARGE_READ = TENSOR_READ + r', ""\.\.\., \d{5,}'
OUTPUT_WRITE = r"pwrite64\(\d+<[^>]*\.partial-"

pytestmark = pytest.mark.usefixtures("strace")


def slow(call, milliseconds, paths=()):
    return failing(call, f"delay_enter={milliseconds}ms", paths)


def failing(call, what, paths=()):
    """Options of strace for calls on the given files. Reads need them: starting a program reads files, too."""
    return " ".join([f"-e trace={call} -e inject={call}:{what}", *(f"-P {path}" for path in paths)])


def shards(ckpt):
    return reference.shard_files(ckpt.resolve())


PHASES = {  # what is going on: (arguments, slowed call, a call by which it is known to go on)
    "load": (["load", "CKPT", "--store", "OUT"], "pread64", TENSOR_READ),
    "store": (["load", "CKPT", "--store", "OUT"], "pwrite64", OUTPUT_WRITE),
    "to_hf": (["to-hf", "CKPT", "OUT"], "pwrite64", OUTPUT_WRITE),
}


@pytest.fixture(params=PHASES)
def phase(request):
    return request.param


def in_the_middle(phase, ckpt, out, folder, traced="2", ranks=4, **how):
    """A job that is held up in a phase, and what its rank is waited for with."""
    arguments, call, pattern = PHASES[phase]
    arguments = [{"CKPT": ckpt, "OUT": out}.get(argument, argument) for argument in arguments]
    paths = shards(ckpt) if call == "pread64" else []
    on_rank = OnRank(folder, traced=traced, strace=slow(call, 100, paths), codes=how.pop("codes", False))
    return Run(*arguments, *how.pop("options", ()), ranks=ranks, on_rank=on_rank, **how), on_rank, pattern


def assert_nothing_made(out):
    assert not out.exists()


# Ranks that do not answer -------------------------------------------------------------------------------------------


def test_a_slow_rank_is_waited_for(tiny, tmp_path):
    """The deadline counts from the last progress: every read takes a moment, all of them longer than it."""
    on_rank = OnRank(tmp_path / "ranks", traced="1", strace=slow("pread64", 150, shards(tiny)))
    result = run_ok("load", tiny, "--timeout", 2, ranks=2, on_rank=on_rank)
    assert result.seconds > 3, "the reads were not slow enough for this test to prove anything"


def test_a_rank_that_stops_at_the_very_end_is_not_waited_for_for_ever(tiny, tmp_path):
    on_rank = OnRank(tmp_path / "ranks", rank_1_sets=f"LD_PRELOAD={os.environ['NEVER_ENDS']}")
    result = run("load", tiny, "--timeout", 2, ranks=2, on_rank=on_rank)
    assert result.code == 75, result.stderr
    assert "MPI did not end within 2.0 s" in result.stderr


def test_a_rank_ends_although_its_launcher_stands_still(tiny, tmp_path):
    """Aborting waits for the launcher; the deadline does not."""
    job, on_rank, pattern = in_the_middle(
        "load", tiny, tmp_path / "out", tmp_path / "ranks", traced="1", ranks=2, options=["--timeout", 2]
    )
    with job:
        on_rank.wait_for_call(1, pattern)
        job.signal_launcher(signal.SIGSTOP)
        os.kill(on_rank.pid(1), signal.SIGSTOP)
        state = Path(f"/proc/{on_rank.pid(0)}/stat")
        wait_until(lambda: state.read_text().rsplit(")", 1)[1].split()[0] == "Z", 30, "rank 0 to end")


# Told to stop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_cleanly(phase, number, code, tiny, tmp_path):
    out = tmp_path / "out"
    job, on_rank, pattern = in_the_middle(phase, tiny, out, tmp_path / "ranks", traced="0", ranks=None)
    with job:
        on_rank.wait_for_call(0, pattern)
        os.kill(on_rank.pid(0), number)
        result = job.finish()
    assert result.code == code, result.stderr
    assert_nothing_made(out)
    assert not leftovers(out)


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 2), (signal.SIGTERM, 1)])
def test_a_signal_to_mpirun_ends_all_ranks(phase, number, times, tiny, tmp_path):
    """mpirun asks all ranks to stop, kills those that do not soon enough, and leaves with a status of its own.

    The lowest rank that was at work speaks, if it is given the time: others may have had nothing to do in that step.
    """
    out = tmp_path / "out"
    job, on_rank, pattern = in_the_middle(phase, tiny, out, tmp_path / "ranks", traced="all", ranks=3)
    with job:
        on_rank.wait_for_call(2, pattern)
        for _ in range(times):
            job.signal_launcher(number)
        result = job.finish()
    assert result.code != 0
    said = re.findall("rankslice: error: .*", result.stderr)
    assert len(said) <= 1 and all(re.fullmatch(r"rankslice: error: rank \d: stopped on request", one) for one in said)
    assert_nothing_made(out)


def test_a_signal_to_one_rank_ends_all_with_its_code(tiny, tmp_path):
    out = tmp_path / "out"
    job, on_rank, pattern = in_the_middle("load", tiny, out, tmp_path / "ranks", codes=True)
    with job:
        on_rank.wait_for_call(2, pattern)
        os.kill(on_rank.pid(2), signal.SIGTERM)
        result = job.finish()
    assert result.rank_codes == dict.fromkeys(range(4), 143), result.stderr
    assert_nothing_made(out)
    assert not leftovers(out)


# Disks --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("command", ["store", "shards", "to_hf", "synth"])
def test_a_full_disk(command, tiny, tiny_tensors, small_disk):
    assert sum(value.nbytes for value in tiny_tensors.values()) > 10 << 20
    out = small_disk / "out"
    arguments = {
        "store": ["load", tiny, "--store", out],
        "shards": ["load", tiny, "--save-shards", out],
        "to_hf": ["to-hf", tiny, out],
        "synth": ["synth", out, "--family", "qwen3_5_moe", "--preset", "tiny"],
    }[command]
    result = run(*arguments, ranks=None if command == "synth" else 2)
    assert result.code in (73, 74), result.stderr
    assert "No space left on device" in result.stderr
    assert list(small_disk.iterdir()) == []


def test_the_rest_of_a_killed_run_is_not_in_the_way(mini, tmp_path):
    """It is not removed either: it may belong to a run that is going on."""
    stray = tmp_path / "out.partial-1234"
    stray.mkdir()
    expect(0, "to-hf", mini, tmp_path / "out")
    assert stray.exists()
