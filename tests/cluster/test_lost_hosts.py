"""Hosts that die, stand still or are cut off, and ranks that stop, while jobs of mpirun load and export: what is said,
the exit code, and that no process is left on any host."""

import os
import re
import shutil
import signal
from contextlib import ExitStack

import mpirun
import pytest

import checkpoints
import reference
from program import OnRank, leftovers, recorded, run_ok, wait_until

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")

LOST = "node3"
RANK = 2  # the one there
DEADLINE = 8  # seconds: more than a rank that is well needs for a sign of life on a busy machine
PHASES = {  # what is going on: (arguments, slowed call, a call by which it is known to go on)
    "load": (["load", "CKPT", "--store", "OUT"], "pread64", r"pread64\(\d+<[^>]*\.safetensors>"),
    "to_hf": (["to-hf", "CKPT", "OUT"], "pwrite64", r"pwrite64\(\d+<[^>]*\.partial-"),
    "sync": (["to-hf", "CKPT", "OUT"], "fsync,fdatasync", r"sync\(\d+<[^>]*\.partial-"),
}


class Struck:
    """A job of a rank on each host, whose last rank is slow, with a deadline. Entered, it is in the middle."""

    def __init__(self, phase, hosts, ckpt, out, folder, **how):
        arguments, call, self._pattern = PHASES[phase]
        paths = reference.shard_files(ckpt.resolve()) if call == "pread64" else []
        delay = how.pop("delay", "3s:when=1..10")
        strace = " ".join([f"-e trace={call} -e inject={call}:delay_enter={delay}", *(f"-P {path}" for path in paths)])
        self.on_rank = OnRank(folder, traced=str(RANK), strace=strace)
        arguments = [{"CKPT": ckpt, "OUT": out}.get(argument, argument) for argument in arguments]
        deadline = how.pop("deadline", DEADLINE)
        env = {"MPIRUN_GRACE_SECONDS": str(how.pop("grace", 3))} | how.pop("env", {})
        options = ["--timeout", deadline]
        self.job = mpirun.start(hosts, *arguments, *options, per_host=1, on_rank=self.on_rank, env=env, **how)

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
    ("phases", "fault"),
    [
        (["load", "to_hf"], "cut off"),
        (["load", "to_hf"], "without power"),
        (["load"], "standing still"),
        (["load"], "of a rank that stopped"),
    ],
)
def test_a_host(phases, fault, hosts, tiny, tmp_path):
    """Jobs of several phases lose it at once."""
    out = {phase: tmp_path / phase for phase in phases}
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(Struck(phase, hosts, tiny, out[phase], tmp_path / f"ranks.{phase}")) for phase in out
        ]
        FAULTS[fault](hosts, jobs[0].on_rank.pid(RANK))
        results = [struck.job.finish() for struck in jobs]
    for result in results:
        assert result.code == 75, result.stderr
        silent = rf"rankslice: error: no answer from rank\(s\) .*{RANK} \(.*{LOST}\) within {DEADLINE}.0 s"
        assert re.search(silent, result.stderr), result.stderr
    if fault == "standing still":
        wait_until(lambda: not hosts.processes("node1") and not hosts.processes("node2"), 120, "the other hosts")
        hosts.thaw(LOST)
    hosts.wait_until_idle()
    assert not any(path.exists() for path in out.values())


def test_the_launcher_finds_a_dead_link_while_the_ranks_are_patient(hosts, tiny, tmp_path):
    keepalive = {"time": "2", "intvl": "1", "probes": "2"}
    env = {f"OMPI_MCA_oob_tcp_keepalive_{name}": value for name, value in keepalive.items()}
    with Struck("load", hosts, tiny, tmp_path / "out", tmp_path / "ranks", deadline=150, grace=20, env=env) as struck:
        hosts.cut(LOST)
        result = struck.job.finish()
    assert result.code == 205, result.stderr
    assert re.search(rf"lost communication with a remote daemon.*on node {LOST}", result.stderr, re.DOTALL)
    hosts.wait_until_idle()
    assert not (tmp_path / "out").exists()


def test_without_the_host_of_mpirun_the_ranks_of_the_others_end(hosts, tiny, tmp_path):
    with Struck("load", hosts, tiny, tmp_path / "out", tmp_path / "ranks"):
        hosts.off("node1")
        hosts.wait_until_idle()
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def several_stages(tmp_path_factory):
    """What three ranks export in more than one stage: at least 64 MiB for each of them."""
    folder = tmp_path_factory.mktemp("synth") / "stages"
    run_ok("synth", folder, "--preset", "small", "--layers", 2, "--experts", 8)
    return folder


def test_an_export_that_lost_a_host_is_finished_by_the_same_command(hosts, several_stages, tmp_path):
    out = tmp_path / "out"
    with Struck("sync", hosts, several_stages, out, tmp_path / "ranks", delay="3s") as struck:
        wait_until(lambda: recorded(out) > 0, 120, "the first stage to be done")
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
