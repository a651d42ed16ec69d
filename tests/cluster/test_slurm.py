"""Jobs of Slurm on three hosts: README's examples, the job scripts, and what users see when a job is interrupted."""

import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import readme
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from slurm import Slurm

import checkpoints
import program
import reference

NAME = "Qwen3.6-35B-A3B"
LOAD, TO_HF, TRAIN, STEP, SALLOC = readme.commands("Slurm")
SLOW_WRITES = "-e trace=pwrite64 -e inject=pwrite64:delay_enter=3s"


@pytest.fixture(scope="session")
def cluster(three_hosts):
    cluster = Slurm(three_hosts)
    yield cluster
    cluster.wait_until_idle()


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """A checkpoint of 512 MB in four files. Two ranks write it in stages of 128 MiB or more."""
    folder = tmp_path_factory.mktemp("large")
    made, large = folder / "made", folder / "ckpt"
    program.run_ok("synth", made, "--family", "qwen3_moe", "--preset", "small", "--layers", 2, "--experts", 16)
    large.mkdir()
    save_torch_state_dict(tensors(made), large, max_shard_size="145MB")
    for path in made.iterdir():
        if ".safetensors" not in path.name:
            path.rename(large / path.name)
    return large


@pytest.fixture(scope="session")
def out_of_time(tiny, cluster, tmp_path_factory):
    """(job, folder) of an export that takes minutes and comes to its time limit while other tests run: Slurm looks for
    that every 30 s only, and then sees a minute ahead."""
    folder = tmp_path_factory.mktemp("out_of_time")
    script = slow_program(folder, reference.shard_files(tiny), "10s")
    line = f"sbatch --time=1 --signal=TERM@50 --ntasks-per-node=1 launch/slurm/to_hf.sbatch {tiny} exported"
    job = cluster.submit(line, folder, env={"RANKSLICE": str(script)})
    cluster.background.add(job)
    return job, folder


@pytest.fixture
def slurm(cluster, out_of_time):
    yield cluster
    cluster.wait_until_quiet()


@pytest.fixture
def folder(tiny, tmp_path):
    """Where users are: the job scripts, the checkpoint that README names, and nothing else."""
    (tmp_path / "launch").symlink_to(readme.ROOT / "launch")
    (tmp_path / NAME).symlink_to(tiny)
    return tmp_path


def program_script(folder, *lines):
    """A program that job scripts start in place of rankslice, which is "$@" in it, with its arguments."""
    script = folder / "rankslice"
    script.write_text("\n".join(["#!/bin/sh", f'set -- {program.PROGRAM} "$@"', *lines, ""]))
    script.chmod(0o755)
    return script


def slow_reads(files, delay="1s"):
    return " ".join(["-e trace=pread64", f"-e inject=pread64:delay_enter={delay}", *(f"-P {path}" for path in files)])


def slow_program(folder, files, delay):
    """Reads from these files are slow as long as there is no file `quick` in the folder, which gets the job scripts."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    (folder / "launch").symlink_to(readme.ROOT / "launch")
    slow = f"strace --seccomp-bpf -f -qq -o /dev/null {slow_reads(files, delay)}"
    return program_script(folder, f'[ -e {folder}/quick ] || set -- {slow} "$@"', 'exec "$@"')


def assert_same_checkpoint(expected, found):
    assert not checkpoints.folder_differences(expected, found)


def tensors(folder):
    return {name: value for path in reference.shard_files(folder) for name, value in load_file(path).items()}


def script_says(folder):
    (path,) = folder.glob("rankslice-*.out")
    return path.read_text()


def submit_and_wait(slurm, line, folder, seconds=180):
    """What a job script of README leaves: it must succeed. Returns what it printed."""
    job = slurm.wait_until_over(slurm.submit(line, folder), seconds)
    (path,) = folder.glob(f"*-{job['JobId']}.out")
    assert (job["JobState"], job["ExitCode"]) == ("COMPLETED", "0:0"), path.read_text()
    return path.read_text()


# README's examples --------------------------------------------------------------------------------------------------


def test_the_job_scripts_load_a_checkpoint_and_write_it_again_byte_for_byte(slurm, folder):
    says = submit_and_wait(slurm, LOAD, folder)
    assert "no difference" in says and "4 ranks" in says
    submit_and_wait(slurm, TO_HF, folder)
    assert_same_checkpoint(folder / NAME, folder / "exported")


def test_a_training_step_follows_in_the_same_job_and_its_weights_come_home(slurm, folder):
    (folder / "train.py").symlink_to(Path(__file__).parent / "train.py")
    says = submit_and_wait(slurm, TRAIN, folder)
    assert sorted(line for line in says.splitlines() if "trained" in line) == [
        f"rank {rank} on node{1 + rank // 2}: trained with 4 ranks" for rank in range(4)
    ]
    submit_and_wait(slurm, TO_HF.replace("qwen.h5", "shards"), folder)
    before, after = tensors(folder / NAME), tensors(folder / "exported")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].equal(value * 2 if ".experts." in name else value), name


def test_a_job_step_gives_a_store(slurm, folder):
    slurm.command(*shlex.split(STEP), cwd=folder)
    slurm.run_ok("verify", "qwen.h5", "--against", NAME, cwd=folder)
    slurm.run_ok("to-hf", "qwen.h5", "exported", per_node=1, cwd=folder)
    assert_same_checkpoint(folder / NAME, folder / "exported")


@pytest.mark.parametrize("launcher", ["mpirun", "launch/mpirun.sh --"])
def test_mpirun_in_an_allocation_takes_its_hosts_from_slurm(launcher, slurm, folder):
    slurm.command(*shlex.split(SALLOC.replace("mpirun", launcher)), cwd=folder)
    slurm.run_ok("verify", "qwen.h5", "--against", NAME, cwd=folder)


# Interruptions ------------------------------------------------------------------------------------------------------

INTERRUPTED = {  # what is going on: (arguments, a slow call by which it is known to go on)
    "load": (["load", NAME, "--store", "out"], r"pread64\(\d+<[^>]*\.safetensors>"),
    "to_hf": (["to-hf", NAME, "out"], r"pwrite64\(\d+<[^>]*\.partial-"),
}
DEADLINE = 8  # seconds: more than a rank that is well needs for a sign of life on a busy machine


class Held:
    """A job of six ranks on three hosts, held up by slow calls."""

    def __init__(self, slurm, phase, folder, *options):
        arguments, self.pattern = INTERRUPTED[phase]
        files = reference.shard_files((folder / NAME).resolve())
        slowed = slow_reads(files) if phase == "load" else SLOW_WRITES
        self.slurm = slurm
        self.on_rank = program.OnRank(folder / "ranks", traced="all", strace=slowed)
        self.run = slurm.start(*arguments, *options, on_rank=self.on_rank, cwd=folder)

    def __enter__(self):
        self.run.__enter__()
        self.on_rank.wait_for_call(5, self.pattern)
        self.job = self.slurm.newest_job()
        return self

    def __exit__(self, *how):
        self.run.__exit__(*how)

    def end(self, code, state):
        """Returns what users see."""
        says = self.end_without_slurm(code)
        assert self.slurm.wait_until_over(self.job)["JobState"] == state
        return says

    def end_without_slurm(self, code):
        """Where it cannot know yet that all have ended, as it does not hear a node."""
        result = self.run.finish()
        assert result.code == code, result.stderr
        return result.stderr


def tasks_that_left_with(code, says):
    """srun says it for those of a node together, or one by one."""
    found = []
    for first, _, last in re.findall(rf"tasks? (\d+)(-(\d+))?: Exited with exit code {code}\n", says):
        found += range(int(first), int(last or first) + 1)
    return sorted(found)


@pytest.fixture(params=INTERRUPTED)
def phase(request):
    return request.param


def test_scancel_stops_all_ranks_which_say_so_once(phase, slurm, folder):
    with Held(slurm, phase, folder) as held:
        slurm.command("scancel", held.job)
        says = held.end(143, "CANCELLED")
    assert says.count("rankslice: error: ") == 1
    assert re.search(r"rankslice: error: rank \d+: stopped on request", says)
    assert f"*** STEP {held.job}.0 ON node1 CANCELLED AT" in says
    assert tasks_that_left_with(143, says) == [0, 1, 2, 3, 4, 5]
    assert not (folder / "out").exists()


def test_a_rank_that_is_killed_ends_the_step(slurm, folder):
    """The others are asked to stop, cannot agree on it without that rank, and are killed after Slurm's KillWait."""
    with Held(slurm, "load", folder) as held:
        os.kill(held.on_rank.pid(5), signal.SIGKILL)
        says = held.end(137, "FAILED")
    assert "srun: error: node3: task 5: Killed" in says
    assert not (folder / "out").exists()


def test_a_rank_that_is_stopped_is_named_by_the_deadline(slurm, folder):
    with Held(slurm, "load", folder, "--timeout", DEADLINE) as held:
        os.kill(held.on_rank.pid(5), signal.SIGSTOP)
        says = held.end(75, "FAILED")
    assert re.search(rf"rankslice: error: no answer from rank\(s\) .*5 \(.*node3\) within {DEADLINE}.0 s", says)
    assert not (folder / "out").exists()


def test_a_node_that_dies_is_named_by_the_deadline(slurm, three_hosts, folder):
    with Held(slurm, "load", folder, "--timeout", DEADLINE) as held:
        three_hosts.off("node3")
        slurm.wait_until_quiet()
        slurm.command("scontrol", "update", "nodename=node3", "state=down", "reason=power")  # it would after a minute
        says = held.end_without_slurm(75)
    assert re.search(rf"rankslice: error: no answer from rank\(s\) .*[45] \(.*node3\) within {DEADLINE}.0 s", says)
    assert not (folder / "out").exists()
    three_hosts.boot("node3")
    slurm.restart("node3")


def test_a_job_that_is_cancelled_does_not_come_back(slurm, folder):
    on_rank = program.OnRank(folder / "ranks", traced="all", strace=SLOW_WRITES)
    on_rank.folder.mkdir()
    script = program_script(folder, f'exec {readme.ROOT}/tests/system/on_rank.sh "$@"')
    environment = on_rank.environment() | {"RANKSLICE": str(script)}
    job = slurm.submit(TO_HF.replace("qwen.h5", NAME), folder, env=environment)
    on_rank.wait_for_call(3, INTERRUPTED["to_hf"][1])
    slurm.command("scancel", job)
    assert slurm.wait_until_over(job)["JobState"] == "CANCELLED"
    assert "goes back into the queue" not in script_says(folder)
    assert not (folder / "exported").exists()


# What does not start ------------------------------------------------------------------------------------------------


def test_a_missing_checkpoint_ends_the_step_with_66(slurm, folder):
    result = slurm.run("load", "missing", "--store", "out", cwd=folder)
    assert result.code == 66 and "missing" in result.stderr
    assert not (folder / "out").exists()


def test_ranks_that_do_not_find_each_other_are_refused(slurm, folder):
    result = slurm.run("load", NAME, "--store", "out", step=["srun", "--mpi=none", "--kill-on-bad-exit=1"], cwd=folder)
    assert result.code == 78
    assert "use srun --mpi=pmix" in result.stderr
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("line", "output"), [(LOAD, "qwen.h5"), (TO_HF, "exported"), (TRAIN, "shards")])
def test_a_script_does_not_take_for_its_own_what_is_there(line, output, slurm, folder):
    (folder / output).mkdir()
    job = slurm.wait_until_over(slurm.submit(line, folder))
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "73:0")
    assert re.fullmatch(rf"\w+\.sbatch: {output} exists already.*\n", script_says(folder))


@pytest.mark.parametrize("line", [LOAD, TO_HF.replace("qwen.h5", NAME)])
def test_a_script_whose_ranks_cannot_be_started_fails(line, slurm, folder):
    """Slurm 22.05's srun leaves with 0 there. A socket of the plugin that is there keeps a step from starting."""
    job = slurm.submit(line.replace("sbatch", "sbatch --hold", 1), folder)
    for node in (1, 2, 3):
        Path(f"/run/slurm/spool.node{node}/stepd.slurm.pmix.{job}.0").touch()
    slurm.command("scontrol", "release", job)
    state = slurm.wait_until_over(job)
    assert "launch failed" in script_says(folder)
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", "1:0")


def test_a_script_ends_with_the_code_of_its_ranks(slurm, folder):
    job = slurm.wait_until_over(slurm.submit(TO_HF, folder))  # qwen.h5 is not there
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "66:0"), script_says(folder)


# Jobs that go on in another run -------------------------------------------------------------------------------------


def test_a_job_that_is_asked_to_stop_goes_on_where_it_was_in_another_run(slurm, large, tmp_path):
    script = slow_program(tmp_path, reference.shard_files(large)[-1:], "5s")
    line = f"sbatch --ntasks-per-node=1 launch/slurm/to_hf.sbatch {large} exported"
    job = slurm.submit(line, tmp_path, env={"RANKSLICE": str(script)})
    program.wait_until(lambda: program.recorded(tmp_path / "exported") > 0, 120, "a part to be done")
    slurm.command("scancel", "--signal=TERM", job)
    slurm.wait_for(job, "PENDING")
    says = script_says(tmp_path)
    assert re.search(r"rankslice: exported\.partial-\w+ stays: the same command goes on there", says)
    assert re.search(r"rankslice: error: rank \d+: stopped on request", says)
    assert f"job {job} goes back into the queue" in says
    assert not (tmp_path / "exported").exists()

    (tmp_path / "quick").touch()
    done = program.recorded(tmp_path / "exported")
    slurm.start_now(job)
    assert slurm.wait_until_over(job)["JobState"] == "COMPLETED", script_says(tmp_path)
    assert re.search(rf"rankslice: going on in exported\.partial-\w+: {done} of 4 parts", script_says(tmp_path))
    report = json.loads((tmp_path / "exported.report.json").read_text())
    assert report["resumed"]["segments"] == done
    assert_same_checkpoint(large, tmp_path / "exported")
    assert not program.leftovers(tmp_path / "exported")


def test_a_time_limit_puts_the_job_back_into_the_queue(slurm, out_of_time):
    job, folder = out_of_time
    program.wait_until(lambda: slurm.job(job)["Restarts"] != "0", 180, f"job {job} to be requeued")
    assert f"job {job} goes back into the queue" in script_says(folder)
    assert not (folder / "exported").exists()
    slurm.command("scancel", job)
