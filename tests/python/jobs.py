"""Ranks of torch.distributed on the CPU, as torchrun starts them, each with an output and a result of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch.distributed import TCPStore

PROGRAMS = Path(__file__).parent / "programs"


@dataclass
class Rank:
    """What became of one: its exit code (of a signal: minus its number), all that it printed, and what it reported."""

    code: int
    output: str
    result: object


class Job:
    """The ranks of a program of programs/, under way."""

    def __init__(self, folder, program, ranks, arguments):
        # As torchrun does it: the store is not that of a rank, so it outlives them all and has no port to guess.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._folder = folder
        self.processes = [self._start(program, rank, ranks, arguments) for rank in range(ranks)]

    def _start(self, program, rank, ranks, arguments):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        settings = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": self._store.port,
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": 1,
            "PYTHONFAULTHANDLER": 1,
            "RANK_REPORT": self._path(rank, "json"),
        }
        environment = os.environ | {name: str(value) for name, value in (numbers | settings).items()}
        with open(self._path(rank, "txt"), "wb") as output:
            return subprocess.Popen(
                [sys.executable, PROGRAMS / program, *map(str, arguments)],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _path(self, rank, suffix):
        return self._folder / f"rank{rank}.{suffix}"

    def output(self, rank):
        return self._path(rank, "txt").read_text(errors="replace")

    def wait_for(self, rank, line, timeout=60):
        """Until a rank has printed a line."""
        end = time.monotonic() + timeout
        while line not in self.output(rank).splitlines():
            if time.monotonic() > end or self.processes[rank].poll() is not None:
                pytest.fail(f"rank {rank} never printed {line!r}:\n{self.output(rank)}")
            time.sleep(0.02)

    def send(self, rank, number):
        self.processes[rank].send_signal(number)

    def end(self, timeout):
        """Waits for all ranks. Past the time, those that are left show where they are, and the test fails."""
        end = time.monotonic() + timeout
        try:
            for process in self.processes:
                process.wait(max(0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            late = [rank for rank, process in enumerate(self.processes) if process.poll() is None]
            self.kill(signal.SIGABRT)
            outputs = "\n".join(f"--- rank {rank}\n{self.output(rank)}" for rank in range(len(self.processes)))
            pytest.fail(f"ranks {late} did not end within {timeout} s:\n{outputs}")
        return [self._rank(rank) for rank in range(len(self.processes))]

    def end_of(self, rank, timeout):
        """Waits for one rank alone."""
        try:
            self.processes[rank].wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGABRT)
            pytest.fail(f"rank {rank} did not end within {timeout} s:\n{self.output(rank)}")
        return self._rank(rank)

    def _rank(self, rank):
        report = self._path(rank, "json")
        result = json.loads(report.read_text()) if report.exists() else None
        return Rank(self.processes[rank].returncode, self.output(rank), result)

    def kill(self, number=signal.SIGKILL):
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)
        for process in self.processes:
            process.wait()
