"""A Slurm cluster in the box (slurm.sh), and jobs of it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hosts import HERE

import program
from skipping import SKIPPED

STEP = ["srun", "--mpi=pmix", "--kill-on-bad-exit=1", "--wait=60"]
STEP_DAEMON = "slurmstepd: ["
FOLDER = Path("/run/slurm")


def processes_of_jobs():
    """pid -> (job, command line), of all that Slurm started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            environment = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # gone
            continue
        jobs = [value[len(b"SLURM_JOB_ID=") :].decode() for value in environment if value.startswith(b"SLURM_JOB_ID=")]
        if command.startswith(STEP_DAEMON):
            jobs = [command.removeprefix(STEP_DAEMON).split(".")[0]]
        if jobs and command:
            found[int(folder.name)] = (int(jobs[0]), command)
    return found


class Slurm:
    """On `hosts`, a node on each; with `nodes`, so many on the first of them. People use the first."""

    def __init__(self, hosts, nodes=None):
        self._script(*(hosts.names if nodes is None else [hosts.names[0], nodes]))
        self.login = hosts.on(hosts.names[0])
        self.environment = {
            "SLURM_CONF": str(FOLDER / "slurm.conf"),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        }
        self.background = set()  # jobs that go on while tests come and go

    @staticmethod
    def _script(*arguments):
        done = subprocess.run([HERE / "slurm.sh", FOLDER, *map(str, arguments)], capture_output=True, text=True)
        if done.returncode == SKIPPED:
            pytest.skip(done.stdout.removeprefix("skipped: ").strip())
        assert done.returncode == 0, done.stderr

    def restart(self, host):
        """The node of a host that was off."""
        self._script("--again", host)

    def start(self, *arguments, nodes=3, per_node=2, step=STEP, env=None, timeout=180, **how):
        """`rankslice ARGUMENTS` as a job of its own with one step. Returns a `program.Run`."""
        under = [*self.login, *step, f"--nodes={nodes}", f"--ntasks-per-node={per_node}"]
        return program.Run(*arguments, under=under, env=self.environment | (env or {}), timeout=timeout, **how)

    def run(self, *arguments, **how):
        with self.start(*arguments, **how) as job:
            return job.finish()

    def run_ok(self, *arguments, **how):
        result = self.run(*arguments, **how)
        assert result.code == 0, f"{arguments}: exit code {result.code}\n{result.stderr}"
        return result

    def command(self, *command, cwd=None, env=None):
        """What people type. It must succeed; returns what it prints."""
        found_first = os.pathsep.join(
            [str(program.PROGRAM.parent), str(Path(sys.executable).parent), os.environ["PATH"]]
        )
        done = subprocess.run(
            ["timeout", "-k", "5", "180", *self.login, *map(str, command)],
            cwd=cwd,
            env=os.environ | self.environment | {"PATH": found_first} | (env or {}),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, line, cwd, env=None):
        """A line with sbatch; returns the job's number."""
        return int(self.command("sh", "-c", line, cwd=cwd, env=env).removeprefix("Submitted batch job "))

    def job(self, number):
        """What scontrol says of it."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def jobs(self):
        return set(map(int, self.command("squeue", "--noheader", "--format=%i").split()))

    def wait_for(self, number, state, seconds=120):
        program.wait_until(lambda: self.job(number)["JobState"] == state, seconds, f"job {number} to be {state}")

    def wait_until_over(self, number, seconds=180):
        """Returns what scontrol says of it then."""
        program.wait_until(lambda: number not in self.jobs(), seconds, f"job {number} to end")
        return self.job(number)

    def start_now(self, number, seconds=120):
        """A job that was put back into the queue, where Slurm lets it wait for two minutes, and says so more than once.
        Before all of its last run is gone it would fail."""
        program.wait_until(
            lambda: number not in [job for job, _ in processes_of_jobs().values()], seconds, f"job {number} to be gone"
        )
        update = f"scontrol update jobid={number} starttime=now || true"  # refused once it has started

        def is_started():
            time.sleep(1)
            self.command("sh", "-c", update)
            return self.job(number)["JobState"] != "PENDING"

        program.wait_until(is_started, seconds, f"job {number} to start")

    def newest_job(self):
        return max(processes_of_jobs().values())[0]

    def wait_until_quiet(self, seconds=120):
        """No process of a job is left but of those in the background. Slurm's own need seconds after a bad end."""
        program.wait_until(
            lambda: not [process for process in processes_of_jobs().values() if self._belongs_to_test(*process)],
            seconds,
            "all processes of jobs to end",
        )

    def _belongs_to_test(self, job, command):
        return job not in self.background and not command.startswith(STEP_DAEMON)

    def wait_until_idle(self, seconds=120):
        """No job is left, and nothing that Slurm started for one."""
        program.wait_until(lambda: not self.jobs(), seconds, "all jobs to end")
        program.wait_until(lambda: not processes_of_jobs(), seconds, "all processes of jobs to end")
