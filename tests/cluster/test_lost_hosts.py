"""Hosts that die, stand still or are cut off, and ranks that stop, while jobs of mpirun load and export: what is said,
the exit code, and that no process is left on any host."""

import os
import re
import shutil
import signal

import mpirun
import pytest

import checkpoints
import reference
from program import OnRank, leftovers, run_ok, wait_until

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")

LOST = "node3"
RANK = 2  # the one there
PHASES = {  # what is going on: (arguments, slowed call, a call by which it is known to go on)
    "load": (["load", "CKPT", "--store", "OUT"], "pread64", r"pread64\(\d+<[^>]*\.safetensors>"),
    "to_hf": (["to-hf", "CKPT", "OUT"], "pwrite64", r"pwrite64\(\d+<[^>]*\.partial-"),
    "sync": (["to-hf", "CKPT", "OUT"], "fsync,fdatasync", r"sync\(\d+<[^>]*\.partial-"),
}


class Struck:
    """A job of a rank on each host, whose last rank is slow, with a deadline of 2 s. Entered, it is in the middle."""

    def __init__(self, phase, hosts, ckpt, out, folder, **how):
        arguments, call, self._pattern = PHASES[phase]
        paths = reference.shard_files(ckpt.resolve()) if call == "pread64" else []
        delay = how.pop("delay", "500ms:when=1..4")
        strace = " ".join([f"-e trace={call} -e inject={call}:delay_enter={delay}", *(f"-P {path}" for path in paths)])
        self.on_rank = OnRank(folder, traced=str(RANK), strace=strace)
        arguments = [{"CKPT": ckpt, "OUT": out}.get(argument, argument) for argument in arguments]
        deadline = how.pop("deadline", 2)
        self.job = mpirun.start(hosts, *arguments, "--timeout", deadline, per_host=1, on_rank=self.on_rank, **how)

    def __enter__(self):
        self.job.__enter__()
        self.on_rank.wait_for_call(RANK, self._pattern)
        return self

    def __exit__(self, *_):
        self.job.__exit__()


FAULTS = {
    "cut off": lambda hosts, rank: hosts.cut(LOST),
    "without power": lambda hosts, rank: hosts.off(LOST),
    "standing still": lambda hosts, rank: hosts.freeze(LOST),
    "of a rank that stopped": lambda hosts, rank: os.kill(rank, signal.SIGSTOP),
}


@pytest.mark.parametrize(
    ("phase", "fault"),
    [("load", fault) for fault in FAULTS] + [("to_hf", "cut off"), ("to_hf", "without power")],
)
def test_a_host(phase, fault, hosts, tiny, tmp_path):
    out = tmp_path / "out"
    with Struck(phase, hosts, tiny, out, tmp_path / "ranks") as struck:
        FAULTS[fault](hosts, struck.on_rank.pid(RANK))
        result = struck.job.finish()
    assert result.code == 75, result.stderr
    assert f"rankslice: error: no answer from rank(s) {RANK} (host {LOST}) within 2.0 s" in result.stderr
    if fault == "standing still":
        wait_until(lambda: not hosts.processes("node1") and not hosts.processes("node2"), 20, "the other hosts")
        hosts.thaw(LOST)
    hosts.wait_until_idle(40)
    assert not out.exists()


def test_the_launcher_finds_a_dead_link_while_the_ranks_are_patient(hosts, tiny, tmp_path):
    keepalive = {"time": "2", "intvl": "1", "probes": "2"}
    env = {f"OMPI_MCA_oob_tcp_keepalive_{name}": value for name, value in keepalive.items()}
    with Struck("load", hosts, tiny, tmp_path / "out", tmp_path / "ranks", deadline=120, env=env) as struck:
        hosts.cut(LOST)
        result = struck.job.finish()
    assert result.code == 205, result.stderr
    assert re.search(rf"lost communication with a remote daemon.*on node {LOST}", result.stderr, re.DOTALL)
    hosts.wait_until_idle(20)
    assert not (tmp_path / "out").exists()


def test_without_the_host_of_mpirun_the_ranks_of_the_others_end(hosts, tiny, tmp_path):
    with Struck("load", hosts, tiny, tmp_path / "out", tmp_path / "ranks"):
        hosts.off("node1")
        hosts.wait_until_idle(40)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def several_stages(tmp_path_factory):
    """What three ranks export in more than one stage: at least 64 MiB for each of them."""
    folder = tmp_path_factory.mktemp("synth") / "stages"
    run_ok("synth", folder, "--preset", "small", "--layers", 2, "--experts", 8)
    return folder


def recorded(out):
    """How many files of an export are recorded as done: a line each, after that of the format."""
    records = [path for path in leftovers(out) if path.name.endswith(".progress")]
    return sum(len(path.read_text().splitlines()) - 1 for path in records)


def test_an_export_that_lost_a_host_is_finished_by_the_same_command(hosts, several_stages, tmp_path):
    out = tmp_path / "out"
    with Struck("sync", hosts, several_stages, out, tmp_path / "ranks", delay="1500ms", deadline=6) as struck:
        wait_until(lambda: recorded(out) > 0, 30, "the first stage to be done")
        hosts.off(LOST)
        lost = struck.job.finish()
    assert lost.code == 75, lost.stderr
    done = recorded(out)
    hosts.boot(LOST)
    resumed = mpirun.run_ok(hosts, "to-hf", several_stages, out, "--json", per_host=1)
    assert "rankslice: going on in " in resumed.stderr
    assert resumed.json["resumed"]["segments"] == done
    assert not checkpoints.folder_differences(several_stages, out)
    assert not leftovers(out)
