"""The files of launch/ that tests cannot run: they are complete, and name what is there."""

import ast
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"


def test_the_job_for_kubernetes_has_what_its_schema_requires():
    job = yaml.safe_load((LAUNCH / "kubernetes/mpijob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v2beta1", "MPIJob") and job["metadata"]["name"]
    replicas = job["spec"]["mpiReplicaSpecs"]
    assert set(replicas) == {"Launcher", "Worker"} and replicas["Launcher"]["replicas"] == 1
    for role in replicas.values():
        containers = role["template"]["spec"]["containers"]
        assert all(container["name"] and container["image"] for container in containers)
    for role in replicas.values():
        mounted = {m["name"] for c in role["template"]["spec"]["containers"] for m in c.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in role["template"]["spec"].get("volumes", [])}


def test_the_arguments_of_that_job_are_those_that_mpirun_sh_takes(tmp_path):
    job = yaml.safe_load((LAUNCH / "kubernetes/mpijob.yaml").read_text())
    container = job["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["/usr/local/share/rankslice/launch/mpirun.sh"]
    (tmp_path / "hostfile").write_text("worker-0 slots=4\nworker-1 slots=4\n")
    arguments = [word.replace("/etc/mpi/hostfile", str(tmp_path / "hostfile")) for word in container["args"]]
    arguments[arguments.index("rankslice")] = "true"
    command = [LAUNCH / "mpirun.sh", "--dry-run", *arguments]
    assert "worker-0:4,worker-1:4" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def options_of_cmake():
    return set(
        re.findall(r"^ *(?:option|set)\((RANKSLICE_[A-Z0-9]+) ", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    )


def test_the_spack_package_is_python_and_sets_options_that_there_are():
    text = (LAUNCH / "spack/package.py").read_text()
    ast.parse(text)
    assert set(re.findall(r"RANKSLICE_[A-Z0-9]+", text)) <= options_of_cmake()


def test_images_copy_files_that_are_there_and_take_their_packages_from_setup():
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--)(.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]]
    apptainer = (LAUNCH / "container/rankslice.def").read_text()
    copied += re.findall(r"^    (\S+) /rankslice/\S+$", apptainer, re.MULTILINE)
    assert len(copied) > 8
    assert not [name for name in copied if not (ROOT / name).exists()]
    for text in (dockerfile, apptainer):
        assert "setup.sh --runtime" in text and "apt-get install" not in text


def test_the_version_is_the_same_everywhere():
    version = re.search(r"project\(rankslice VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())[1]
    for name in ("modules/rankslice.lua", "spack/package.py"):
        assert set(re.findall(r"\b\d+\.\d+\.\d+\b", (LAUNCH / name).read_text())) == {version}, name
