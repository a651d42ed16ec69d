"""Exports and stores that are stopped, and go on in the next run: in the middle of a stage, by any signal, with other
ranks, beside another run, and again and again at random moments until one run comes to its end."""

import filecmp
import os
import random
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest

import reference
from program import OnRank, Run, expect, leftovers, run, run_ok

STORE_SEGMENT = 256 << 20  # bytes of a store that are recorded together, at least
TENSOR_WRITE = "-e trace=pwrite64"


@pytest.fixture(scope="session")
def many_files(tmp_path_factory):
    """0.5 GB in 17 files: some stages of a few files each."""
    folder = tmp_path_factory.mktemp("synth") / "many_files"
    run_ok("synth", folder, "--family", "qwen3_5_moe", "--preset", "tiny", "--experts", 512, "--layers", 6)
    return folder


@pytest.fixture(scope="session")
def many_files_store(many_files, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "many_files.h5"
    run_ok("load", many_files, "--store", path, ranks=2)
    return path


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "small"
    run_ok("synth", folder, "--preset", "small", timeout=300)
    yield folder
    shutil.rmtree(folder)


def checkpoint_bytes(folder):
    return sum(path.stat().st_size for path in reference.shard_files(folder))


def stored_sizes(store):
    with h5py.File(store) as file:
        return [dataset.id.get_storage_size() for dataset in file["state_dict"].values()]


def assert_same_files(made, source):
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in made.iterdir()) == names
    for name in names:
        assert (made / name).read_bytes() == (source / name).read_bytes(), f"{name} differs"


# In the middle of a stage -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def writes(many_files, tmp_path_factory, request):
    """How many writes of tensors the last of two ranks makes in an undisturbed export."""
    request.getfixturevalue("strace_for_session")
    folder = tmp_path_factory.mktemp("undisturbed")
    on_rank = OnRank(folder / "ranks", traced="1", strace=TENSOR_WRITE)
    run_ok("to-hf", many_files, folder / "out", ranks=2, on_rank=on_rank)
    shutil.rmtree(folder / "out")
    return sum(path.read_text().count("pwrite64(") for path in on_rank.traces(1))


@pytest.fixture(scope="session")
def strace_for_session():
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")


def strike_late(inject, writes, out, ckpt, *options):
    """An export in which something happens to the last rank when it has written three of four parts."""
    late = f"{TENSOR_WRITE} -e inject=pwrite64:{inject}:when={writes * 3 // 4}"
    on_rank = OnRank(out.parent / "ranks", traced="1", strace=late)
    result = run("to-hf", ckpt, out, *options, ranks=2, on_rank=on_rank)
    assert result.code != 0
    assert not out.exists()
    shutil.rmtree(on_rank.folder)
    return result


def unfinished(out):
    """The unfinished output beside `out`, which stands there alone with its record."""
    partial, record = leftovers(out)
    assert record.name == f"{partial.name}.progress"
    return partial


def go_on(ckpt, out, *options, ranks=2):
    """Finishes an export, and returns what it says and reports."""
    report = run_ok("to-hf", ckpt, out, *options, "--json", ranks=ranks)
    assert_same_files(out, ckpt)
    assert not leftovers(out)
    return report


@pytest.mark.parametrize("ended_by", ["SIGKILL", "SIGTERM"])
def test_the_next_run_writes_only_what_is_not_there(ended_by, many_files, writes, tmp_path):
    out = tmp_path / "out"
    stopped = strike_late(f"signal={ended_by}", writes, out, many_files)
    partial = unfinished(out)
    if ended_by == "SIGTERM":
        assert f"{partial} stays: the same command goes on there" in stopped.stderr
    finished = go_on(many_files, out)
    resumed = finished.json["resumed"]
    assert f"going on in {partial}: {resumed['segments']} of 17 parts" in finished.stderr
    assert 0 < resumed["segments"] < resumed["of"] == 17
    assert finished.json["bytes"]["written"] + resumed["bytes"] == finished.json["bytes"]["checkpoint"]


@pytest.fixture(scope="session")
def store_writes(many_files, tmp_path_factory, request):
    """How many writes of tensors the last of two ranks makes for an undisturbed store."""
    request.getfixturevalue("strace_for_session")
    folder = tmp_path_factory.mktemp("undisturbed")
    on_rank = OnRank(folder / "ranks", traced="1", strace=TENSOR_WRITE)
    run_ok("load", many_files, "--store", folder / "out.h5", ranks=2, on_rank=on_rank)
    (folder / "out.h5").unlink()
    return sum(path.read_text().count("pwrite64(") for path in on_rank.traces(1))


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_store_is_taken_over_from_its_last_complete_piece(
    ranks, many_files, many_files_store, store_writes, tmp_path
):
    out = tmp_path / "out.h5"
    late = f"{TENSOR_WRITE} -e inject=pwrite64:signal=SIGKILL:when={store_writes * 3 // 4}"
    on_rank = OnRank(tmp_path / "ranks", traced="1", strace=late)
    assert run("load", many_files, "--store", out, ranks=2, on_rank=on_rank).code != 0
    assert not out.exists()
    partial = unfinished(out)
    finished = run_ok("load", many_files, "--store", out, "--json", ranks=ranks)
    resumed = finished.json["resumed"]
    assert f"going on in {partial}: 1 of 2 parts" in finished.stderr
    assert (resumed["segments"], resumed["of"]) == (1, 2) and resumed["bytes"] >= STORE_SEGMENT
    assert finished.json["bytes"]["written"] + resumed["bytes"] == sum(stored_sizes(many_files_store))
    assert out.read_bytes() == many_files_store.read_bytes()
    assert not leftovers(out)


def test_a_run_with_other_ranks_goes_on(many_files, writes, tmp_path):
    strike_late("signal=SIGKILL", writes, tmp_path / "out", many_files)
    finished = go_on(many_files, tmp_path / "out", "--gather", ranks=3)
    assert finished.json["resumed"]["segments"] > 0


def test_a_run_that_would_write_something_else_names_what_it_found(many_files, writes, tmp_path):
    out = tmp_path / "out"
    strike_late("signal=SIGKILL", writes, out, many_files)
    partial = unfinished(out)
    other = expect(0, "to-hf", many_files, out, "--exclude", "mtp", "--json", ranks=2, says=f"{partial}: belongs to")
    assert "resumed" not in other.json
    assert partial.exists()


def test_without_resuming_nothing_is_kept_nor_taken_over(many_files, writes, tmp_path):
    out = tmp_path / "out"
    strike_late("signal=SIGTERM", writes, out, many_files, "--resume", "off")
    assert not leftovers(out)
    strike_late("signal=SIGKILL", writes, out, many_files)
    afresh = expect(0, "to-hf", many_files, out, "--resume", "off", "--json", ranks=2, says="belongs to a run")
    assert "resumed" not in afresh.json
    assert afresh.json["bytes"]["written"] == afresh.json["bytes"]["checkpoint"]


def test_after_an_error_nothing_is_kept(many_files, writes, tmp_path):
    failed = strike_late("error=ENOSPC", writes, tmp_path / "out", many_files)
    assert "No space left on device" in failed.stderr
    assert not leftovers(tmp_path / "out")


def test_a_second_run_is_refused_while_the_first_one_writes(many_files, writes, tmp_path):
    out = tmp_path / "out"
    half = f"{TENSOR_WRITE} -e inject=pwrite64:signal=SIGSTOP:when={writes // 2}"
    on_rank = OnRank(tmp_path / "ranks", traced="1", strace=half)
    with Run("to-hf", many_files, out, ranks=2, on_rank=on_rank) as first:
        on_rank.wait_for_stop(1)
        expect(73, "to-hf", many_files, out, ranks=2, says=f"is held by process {on_rank.pid(0)} on ")
        os.kill(on_rank.pid(1), signal.SIGCONT)
        result = first.finish()
    assert result.code == 0, result.stderr
    assert_same_files(out, many_files)
    assert not leftovers(out)


# At random moments --------------------------------------------------------------------------------------------------


class Meter:
    """The bytes that the ranks of a job have handed to the system so far."""

    def __init__(self, on_rank):
        self.on_rank, self.of_rank = on_rank, {}

    def look(self):
        for path in self.on_rank.folder.glob("pid.[0-9]"):
            try:
                counters = Path(f"/proc/{path.read_text().strip()}/io").read_text()
            except OSError:  # it has ended
                continue
            self.of_rank[path.name] = int(counters.split("wchar: ")[1].split()[0])

    @property
    def bytes(self):
        return sum(self.of_rank.values())


@dataclass
class Total:
    """Of all runs of one output."""

    kills: int = 0
    bytes: int = 0


def strike(job, on_rank, chance):
    """Kill, or ask to stop, one of the ranks or what has started them. Whether there was one."""
    number = chance.choice([signal.SIGKILL, signal.SIGTERM])
    victim = chance.choice(["launcher", 0, 1])
    try:
        job.signal_launcher(number) if victim == "launcher" else os.kill(on_rank.pid(victim), number)
    except (ProcessLookupError, IndexError):
        return False
    return True


def run_until(moment, job, on_rank, chance):
    """Let a job go on until that moment, if it is given one, then strike it: what it wrote; if it was struck."""
    meter, struck = Meter(on_rank), False
    while job.process.poll() is None:
        meter.look()
        if not struck and moment is not None and time.monotonic() > moment:
            struck = strike(job, on_rank, chance)
        time.sleep(0.003)
    return meter.bytes, struck


def finish_under_fire(command, out, folder, kills, seconds, chance):
    """Runs a command again and again, each time struck at a random moment of its first `seconds`, until its output is
    there. Not more often than `kills`."""
    total = Total()
    while not out.exists():
        on_rank = OnRank(Path(tempfile.mkdtemp(dir=folder)))
        with Run(*command, ranks=2, on_rank=on_rank, timeout=300) as job:
            on_rank.pid(1)
            moment = time.monotonic() + chance.uniform(0, seconds) if total.kills < kills else None
            written, struck = run_until(moment, job, on_rank, chance)
            result = job.finish(survive_seconds=30)
        assert struck or result.code == 0, result.stderr
        total.kills += struck
        total.bytes += written
    # A run that is killed after it has given its output the final name leaves the record of it.
    assert not [path for path in leftovers(out) if not (struck and path.suffix == ".progress")]
    return total


def expect_little_is_written_twice(total, wanted, lost_by_a_kill):
    print(f"{total.kills} kills: {total.bytes / wanted:.2f} of the bytes were written")
    assert total.bytes <= 1.2 * wanted + total.kills * lost_by_a_kill


def largest_file(folder):
    return max(path.stat().st_size for path in reference.shard_files(folder))


def test_an_export_comes_to_its_end_under_random_kills(many_files, tmp_path):
    out = tmp_path / "out"
    total = finish_under_fire(["to-hf", many_files, out], out, tmp_path, 8, 1.5, random.Random(8))
    assert_same_files(out, many_files)
    expect_little_is_written_twice(total, checkpoint_bytes(many_files), largest_file(many_files))


def test_a_store_comes_to_its_end_under_random_kills(many_files, many_files_store, tmp_path):
    out = tmp_path / "out.h5"
    finish_under_fire(["load", many_files, "--store", out], out, tmp_path, 4, 2.5, random.Random(8))
    assert out.read_bytes() == many_files_store.read_bytes()


def outputs_of_fifty_kills(command, folder, seconds):
    """As many outputs as it takes, one after the other; the moments are such that each run gets a little further."""
    chance, kills = random.Random(50), 0
    while kills < 50:
        out = folder / f"out{kills}"
        total = finish_under_fire([*command, out], out, folder, 50 - kills, seconds, chance)
        yield out, total
        kills += total.kills


@pytest.mark.long
def test_large_exports_come_to_their_end_under_fifty_random_kills(small, tmp_path):
    seconds = run_ok("to-hf", small, tmp_path / "whole", ranks=2, timeout=300).seconds
    shutil.rmtree(tmp_path / "whole")
    for out, total in outputs_of_fifty_kills(["to-hf", small], tmp_path, seconds / 2):
        assert_same_files(out, small)
        shutil.rmtree(out)
        expect_little_is_written_twice(total, checkpoint_bytes(small), largest_file(small))


@pytest.mark.long
def test_large_stores_come_to_their_end_under_fifty_random_kills(small, tmp_path):
    whole = tmp_path / "whole.h5"
    seconds = run_ok("load", small, "--store", whole, ranks=2, timeout=300).seconds
    for out, total in outputs_of_fifty_kills(["load", small, "--store"], tmp_path, seconds):
        assert filecmp.cmp(out, whole, shallow=False)
        out.unlink()
        expect_little_is_written_twice(total, whole.stat().st_size, STORE_SEGMENT + max(stored_sizes(whole)))
