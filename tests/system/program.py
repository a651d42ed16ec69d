"""Starting `rankslice`, alone and under mpirun, with a deadline, and seeing that nothing of it stays behind."""

import json
import os
import re
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROGRAM = Path(os.environ.get("SYSTEM_TEST_PROGRAM", HERE.parents[1] / "build/release/bin/rankslice"))
MPIEXEC = os.environ.get("SYSTEM_TEST_MPIEXEC", "mpirun")
MPIEXEC_OPTIONS = os.environ.get("SYSTEM_TEST_MPIEXEC_OPTIONS", "--oversubscribe --allow-run-as-root").split()
MARK = "SYSTEM_TEST_RUN"  # in the environment of every process of one run


@dataclass
class Result:
    code: int
    stdout: str
    stderr: str
    seconds: float
    rank_codes: dict = field(default_factory=dict)  # with `codes=True`: rank -> exit code

    @property
    def json(self):
        return json.loads(self.stdout)


@dataclass
class OnRank:
    """What happens to single ranks of a run (on_rank.sh)."""

    folder: Path  # for pids, codes and traces
    traced: str = ""  # ranks, or "all"
    strace: str | dict = ""  # its options, for all traced ranks or by rank; %PID0% is the pid of rank 0
    under: str = ""  # another program that starts the rank
    codes: bool = False
    rank_1_sets: str = ""  # NAME=value, in the environment of rank 1 only

    def environment(self):
        by_rank = self.strace if isinstance(self.strace, dict) else {}
        return {f"ON_RANK_STRACE_{rank}": options for rank, options in by_rank.items()} | {
            "ON_RANK_DIR": str(self.folder),
            "ON_RANK_TRACED": self.traced or " ".join(map(str, by_rank)),
            "ON_RANK_STRACE": "" if by_rank else self.strace,
            "ON_RANK_UNDER": self.under,
            "ON_RANK_CODES": "1" if self.codes else "",
            "ON_RANK_1_SETS": self.rank_1_sets,
            "RANKSLICE_THREADS": "1",  # calls are counted, and come in one order
        }

    def pid(self, rank, timeout=60):
        path = self.folder / f"pid.{rank}"
        wait_until(path.exists, timeout, f"rank {rank} to start")
        return int(path.read_text())

    def traces(self, rank):
        """The traces of a rank's threads."""
        return sorted(self.folder.glob(f"trace.{rank}.*"))

    def wait_for_stop(self, rank):
        """Until a traced rank has been stopped."""
        self.wait_for_call(rank, "--- stopped by SIGSTOP ---")

    def wait_for_call(self, rank, pattern, timeout=90):
        """Until a traced rank has made a system call that matches."""
        wait_until(
            lambda: any(re.search(pattern, path.read_text()) for path in self.traces(rank)),
            timeout,
            f"rank {rank} to call {pattern}",
        )


def wait_until(condition, timeout, what):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited {timeout} s for {what}"
        time.sleep(0.02)


def marked_processes(mark):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:  # gone, or somebody else's
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0") and state != "Z":
            found.append(int(folder.name))
    return found


class Run:
    """A started program. Leaving the `with` block ends what is left of it."""

    def __init__(self, *args, ranks=None, timeout=60, env=None, on_rank=None, cwd=None, under=()):
        """`under`: a command that starts the program, as mpirun does with `ranks`."""
        self.mark = uuid.uuid4().hex
        self.on_rank = on_rank
        command = [str(PROGRAM), *map(str, args)]
        if on_rank:
            on_rank.folder.mkdir(parents=True, exist_ok=True)
            command = [str(HERE / "on_rank.sh"), *command]
        if ranks is not None:
            command = [MPIEXEC, *MPIEXEC_OPTIONS, "-n", str(ranks), *command]
        command = [*map(str, under), *command]
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            ["timeout", "-k", "5", str(timeout), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=self._environment(env or {}),
        )

    def _environment(self, extra):
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RANKSLICE_")}
        kept.setdefault("ASAN_OPTIONS", "detect_leaks=0")  # the leak checker cannot run under strace
        return kept | {MARK: self.mark} | (self.on_rank.environment() if self.on_rank else {}) | extra

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for pid in marked_processes(self.mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.communicate()

    def signal_launcher(self, number):
        """What a terminal does to mpirun for Ctrl-C, and a batch system for an end."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        os.kill(int(children[0]), number)  # the parent is the program `timeout`

    def finish(self, survive_seconds=60):
        """Wait for the end; no process of the run may outlive it by more than a moment."""
        stdout, stderr = self.process.communicate()
        seconds = time.monotonic() - self.started
        assert self.process.returncode != 124, f"still running after {seconds:.0f} s:\n{stderr}"
        wait_until(lambda: not marked_processes(self.mark), survive_seconds, "all processes of the run to end")
        codes = {}
        if self.on_rank and self.on_rank.codes:
            codes = {int(p.suffix[1:]): int(p.read_text()) for p in self.on_rank.folder.glob("code.*")}
        return Result(self.process.returncode, stdout, stderr, seconds, codes)


def run(*args, **how):
    """Run to the end: `run("load", ckpt, "--store", path, ranks=4)`. Without `ranks`, without mpirun."""
    with Run(*args, **how) as running:
        return running.finish()


def run_ok(*args, **how):
    result = run(*args, **how)
    assert result.code == 0, f"{args}: exit code {result.code}\n{result.stderr}"
    return result


def expect(code, *args, says="", **how):
    """Run, and expect an exit code and words in what it says to people."""
    result = run(*args, **how)
    assert result.code == code, f"{args}: exit code {result.code} instead of {code}\n{result.stderr}"
    for words in says if isinstance(says, list) else [says]:
        assert str(words) in result.stderr, f"{words!r} is not in:\n{result.stderr}"
    return result


def leftovers(path):
    """What stands beside an output under a temporary name."""
    return sorted(Path(path).parent.glob(f"{Path(path).name}.partial-*"))


def recorded(out):
    """How many files of an export are recorded as done: a line each, after that of the format."""
    records = [path for path in leftovers(out) if path.name.endswith(".progress")]
    return sum(len(path.read_text().splitlines()) - 1 for path in records)
