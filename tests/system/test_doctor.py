"""`rankslice doctor`: what it looks at, alone and with ranks, and what it leaves behind: nothing."""

import json
import os
import re
import resource
import shutil

import pytest

from program import expect, run, run_ok

CHECKS = ["rankslice", "launch", "mpi", "gpu", "nccl", "io_uring", "huge pages", "open files", "memory"]


def findings(result):
    """{check: its findings} of the one host."""
    (host,) = result.json["hosts"]
    found = {}
    for finding in host["findings"]:
        assert finding["status"] in ("ok", "note", "problem")
        assert (finding["status"] == "ok") <= (finding["advice"] == "") and finding["text"]
        found.setdefault(finding["check"], []).append(finding)
    return found


@pytest.mark.parametrize("ranks", [None, 1, 3])
def test_doctor_looks_at_everything_and_finds_no_problem_here(ranks, tmp_path):
    result = run_ok("doctor", tmp_path, "--json", ranks=ranks)
    assert (result.json["schema"], result.json["ok"], result.json["problems"]) == ("rankslice.doctor/1", True, 0)
    found = findings(result)
    assert [check for check in found if check not in ("path", "O_DIRECT")] == CHECKS
    assert ("3 ranks on 1 host" in found["launch"][0]["text"]) == (ranks == 3)
    assert ("threads: " in found["mpi"][0]["text"]) == (ranks is not None)
    assert re.search(r"HDF5 \d+\.\d+\.\d+", found["rankslice"][0]["text"])
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_people_the_same(tmp_path):
    lines = run_ok("doctor", tmp_path).stdout.splitlines()
    told = [line for line in lines if not line.startswith(" ")]
    assert [line[9:20].strip() for line in told if line[9:20].strip() not in ("path", "O_DIRECT")] == CHECKS


def test_doctor_knows_the_file_system_as_stat_does(tmp_path):
    import subprocess

    for folder in (tmp_path, "/dev/shm", "/proc"):
        name = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True).stdout.strip()
        text = findings(run_ok("doctor", folder, "--json"))["path"][0]["text"]
        known = {"ext2/ext3": "ext4", "overlayfs": "overlay"}.get(name, name)
        assert f": {known}, " in text or ": 0x" in text, (name, text)


def test_doctor_says_how_much_is_free(tmp_path):
    text = findings(run_ok("doctor", tmp_path, "--json"))["path"][0]["text"]
    number, unit = re.search(r"([\d.]+) (B|kB|MB|GB|TB) free", text).groups()
    free = float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)


def test_doctor_says_that_memory_is_spent_on_a_tmpfs():
    finding = findings(run_ok("doctor", "/dev/shm", "--json"))["path"][0]
    assert finding["status"] == "note" and "memory" in finding["advice"]


def test_doctor_looks_at_a_file_and_writes_nothing(mini_store):
    before = sorted(os.listdir(mini_store.parent))
    found = findings(run_ok("doctor", mini_store, "--json"))
    assert {"path", "O_DIRECT"} <= set(found)
    assert sorted(os.listdir(mini_store.parent)) == before


def test_doctor_makes_files_nowhere_but_in_the_path(tmp_path, strace):
    import subprocess

    from program import PROGRAM

    trace = tmp_path / "trace"
    folder = tmp_path / "folder"
    folder.mkdir()
    command = ["strace", "-f", "-o", trace, "-e", "trace=openat,open,creat,mkdir,unlink", PROGRAM, "doctor", folder]
    subprocess.run(command, check=True, capture_output=True)
    made = re.findall(r'(?:openat|open)\([^"]*"([^"]+)", [^)]*O_CREAT', trace.read_text())
    removed = re.findall(r'unlink\("([^"]+)"\)', trace.read_text())
    assert made and made == removed
    assert all(path.startswith(f"{folder}/.rankslice-doctor-") for path in made)


def test_a_path_that_is_not_there_is_a_problem(tmp_path):
    result = expect(66, "doctor", tmp_path / "none", "--json", says="none")
    assert findings(result)["path"][0]["status"] == "problem"
    assert result.json["ok"] is False


def test_a_folder_that_cannot_be_written_is_a_note(tmp_path):
    finding = findings(run_ok("doctor", "/proc", "--json"))["path"][0]
    assert finding["status"] == "note" and "written" in finding["advice"]


def test_a_missing_gpu_is_a_problem_for_those_who_need_one():
    if findings(run_ok("doctor", "--json"))["gpu"][0]["status"] == "ok":
        pytest.skip("there is a GPU")
    result = expect(69, "doctor", "--device", "cuda", "--json")
    assert findings(result)["gpu"][0]["status"] == "problem"
    assert findings(expect(69, "doctor", "--comm", "nccl", "--json"))["nccl"][0]["status"] == "problem"


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "srun --mpi=pmix"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0", "PMI_SIZE": ""}, "another MPI library"),
    ],
)
def test_ranks_that_are_alone_though_the_launcher_says_more_are_the_finding(env, cause):
    result = expect(78, "doctor", "--json", env=env)
    (launch,) = findings(result)["launch"]
    assert launch["status"] == "problem" and cause in launch["advice"]
    assert set(CHECKS) <= set(findings(result)), "the rest is told, too"


def test_of_ranks_that_are_alone_one_tells_it():
    result = run("doctor", env={"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"})
    assert (result.code, result.stdout, result.stderr) == (0, "", "")


def test_few_open_files_are_a_note():
    import subprocess

    from program import PROGRAM

    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))

    done = subprocess.run([PROGRAM, "doctor", "--json"], capture_output=True, text=True, check=True, preexec_fn=limit)
    (host,) = json.loads(done.stdout)["hosts"]
    (finding,) = [finding for finding in host["findings"] if finding["check"] == "open files"]
    assert finding["status"] == "note" and "512" in finding["text"]
