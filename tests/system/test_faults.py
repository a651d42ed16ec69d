"""Ranks that die, stop or are told to stop, disks that are full or lie: an end in time, the documented code, and
nothing under the final name."""

import os
import re
import signal
import subprocess

import pytest

import checkpoints
import reference
from program import OnRank, Run, expect, leftovers, run, run_ok

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


def test_a_killed_rank_ends_the_job(phase, tiny, tmp_path):
    job, on_rank, pattern = in_the_middle(phase, tiny, tmp_path / "out", tmp_path / "ranks")
    with job:
        on_rank.wait_for_call(2, pattern)
        os.kill(on_rank.pid(2), signal.SIGKILL)
        result = job.finish()
    assert result.code not in (0, 1), result.stderr
    assert_nothing_made(tmp_path / "out")


@pytest.mark.parametrize("phase", ["load", "to_hf"])
def test_a_stopped_rank_is_named_after_the_deadline(phase, tiny, tmp_path):
    job, on_rank, pattern = in_the_middle(
        phase, tiny, tmp_path / "out", tmp_path / "ranks", options=["--timeout", 3]
    )
    with job:
        on_rank.wait_for_call(2, pattern)
        os.kill(on_rank.pid(2), signal.SIGSTOP)
        result = job.finish()
    assert result.code == 75, result.stderr
    assert re.search(r"\branks?(\(s\))? 2\b", result.stderr), result.stderr
    assert_nothing_made(tmp_path / "out")


def test_a_slow_rank_is_waited_for(tiny, tmp_path):
    """The deadline counts from the last progress: every read takes a moment, all of them longer than it."""
    on_rank = OnRank(tmp_path / "ranks", traced="1", strace=slow("pread64", 150, shards(tiny)))
    result = run_ok("load", tiny, "--timeout", 2, ranks=2, on_rank=on_rank)
    assert result.seconds > 3, "the reads were not slow enough for this test to prove anything"


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


def run_with_fault(arguments, rank, strace, folder):
    """Four ranks, one with a fault; expects one code for all. Returns it and what was said."""
    on_rank = OnRank(folder, traced=str(rank), strace=strace, codes=True)
    result = run(*arguments, ranks=4, on_rank=on_rank)
    assert sorted(result.rank_codes) == [0, 1, 2, 3], result.stderr
    assert len(set(result.rank_codes.values())) == 1, result.rank_codes
    return result.rank_codes[0], result.stderr


@pytest.mark.parametrize("command", ["store", "shards", "to_hf"])
@pytest.mark.parametrize(
    ("fault", "codes", "words"),
    [
        (failing("pwrite64", "error=EIO:when=1"), {74}, "Input/output error"),
        (failing("pwrite64", "error=ENOSPC:when=1"), {73, 74}, "No space left on device"),
        (failing("fsync,fdatasync", "error=EIO:when=1"), {74}, "Input/output error"),
    ],
    ids=["write-EIO", "write-ENOSPC", "sync-EIO"],
)
def test_a_failed_write_of_one_rank_is_everyones(command, fault, codes, words, mini, tmp_path):
    out = tmp_path / "out"
    arguments = {
        "store": ["load", mini, "--store", out],
        "shards": ["load", mini, "--save-shards", out],
        "to_hf": ["to-hf", mini, out],
    }[command]
    code, said = run_with_fault(arguments, 2, fault, tmp_path / "ranks")
    assert code in codes, said
    assert said.count(words) == 1 and re.search(r"\brank 2\b", said), said
    assert_nothing_made(out)
    assert not leftovers(out)


def test_a_failed_read_of_one_rank_is_everyones(mini, tmp_path):
    fault = failing("pread64", "error=EIO:when=1", shards(mini))
    code, said = run_with_fault(["load", mini, "--store", tmp_path / "out"], 3, fault, tmp_path / "ranks")
    assert code == 74, said
    assert said.count("Input/output error") == 1 and ".safetensors" in said and re.search(r"\brank 3\b", said), said
    assert_nothing_made(tmp_path / "out")


@pytest.mark.parametrize("call", ["pread64", "pwrite64"])
def test_interrupted_system_calls_are_continued(call, mini, tmp_path):
    every_second = "error=EINTR:when=1+2"
    fault = failing(call, every_second, shards(mini) if call == "pread64" else [])
    code, said = run_with_fault(["to-hf", mini, tmp_path / "out"], 1, fault, tmp_path / "ranks")
    assert code == 0, said
    assert not checkpoints.folder_differences(mini, tmp_path / "out")


@pytest.mark.parametrize("command", ["store", "to_hf"])
def test_a_write_that_lies_is_found_by_reading_back(command, mini, tmp_path):
    """The system says that two bytes were written and writes none: only a look at the file can tell."""
    out = tmp_path / "out"
    arguments = ["load", mini, "--store", out] if command == "store" else ["to-hf", mini, out]
    code, said = run_with_fault(arguments, 1, failing("pwrite64", "retval=2:when=1"), tmp_path / "ranks")
    assert code == 3, said
    assert_nothing_made(out)
    assert not leftovers(out)


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


@pytest.mark.parametrize("which", [0, -1], ids=["the file being read", "a file not read yet"])
def test_a_checkpoint_that_changes_while_it_is_read(which, tiny, tmp_path):
    """What the headers said and what the bytes are may not belong together any more: say so."""
    ckpt = checkpoints.copy(tiny, tmp_path / "ckpt")
    victim = shards(ckpt)[which]
    on_rank = OnRank(tmp_path / "ranks", traced="0", strace=slow("pread64", 100, shards(ckpt)))
    with Run("load", ckpt, "--store", tmp_path / "out", on_rank=on_rank) as job:
        on_rank.wait_for_call(0, LARGE_READ)  # all headers have been read
        with open(victim, "r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b"\x12\x34")
        result = job.finish()
    assert result.code in (65, 74), result.stderr
    assert victim.name in result.stderr
    assert_nothing_made(tmp_path / "out")


def test_a_faulty_disk_keeps_what_stood_there(mini, tmp_path):
    """Overwriting fails half-way: the old output is still whole."""
    out = tmp_path / "out"
    run_ok("to-hf", mini, out)
    code, said = run_with_fault(
        ["to-hf", mini, out, "--overwrite"], 1, failing("pwrite64", "error=EIO:when=1"), tmp_path / "ranks"
    )
    assert code == 74, said
    assert not checkpoints.folder_differences(mini, out)
    assert not leftovers(out)


def test_the_rest_of_a_killed_run_is_not_in_the_way(mini, tmp_path):
    """It is not removed either: it may belong to a run that is going on."""
    stray = tmp_path / "out.partial-1234"
    stray.mkdir()
    expect(0, "to-hf", mini, tmp_path / "out")
    assert stray.exists()
