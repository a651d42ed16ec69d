"""One wheel, made by launch/wheel.sh, in fresh environments with versions of torch that are more than a year apart."""

import filecmp
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = os.environ.get("SYSTEM_TEST_PROGRAM", str(ROOT / "build/release/bin/rankslice"))
ROUND_TRIP = ROOT / "tests/python/programs/there_and_back.py"

# An older torch with the libraries that it cannot be imported without, of those that pip would bring: 5.1 GB.
OLDER = "2.9.0"
OLDER_PACKAGES = f"""
torch=={OLDER} nvidia-cublas-cu12==12.8.4.1 nvidia-cuda-cupti-cu12==12.8.90 nvidia-cuda-runtime-cu12==12.8.90
nvidia-cudnn-cu12==9.10.2.21 nvidia-cufft-cu12==11.3.3.83 nvidia-cufile-cu12==1.13.1.3 nvidia-curand-cu12==10.3.9.90
nvidia-cusparse-cu12==12.5.8.93 nvidia-cusparselt-cu12==0.7.1 nvidia-nccl-cu12==2.27.5 nvidia-nvjitlink-cu12==12.8.93
nvidia-nvshmem-cu12==3.3.20 filelock==4.2.11 fsspec==2026.9.0 Jinja2==3.1.6 MarkupSafe==3.0.4 mpmath==1.3.0
networkx==3.6.1 numpy==2.4.6 sympy==1.14.0 typing_extensions==4.16.0
""".split()

# What manylinux has on all systems; the rest is to be in the wheel.
OF_THE_SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+)\.so\.\d+|ld-linux-x86-64\.so\.2")


def run(*command, **environment):
    """What it prints, without what the tests' own environment says of packages and ranks."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    # With the compiler's name as in the build folder, ccache has everything.
    run(ROOT / "launch/wheel.sh", "--python", sys.executable, out, CXX=os.environ.get("WHEEL_TEST_CXX", "c++"))
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="session")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synth") / "tiny"
    run(PROGRAM, "synth", folder, "--family", "qwen3_5_moe", "--preset", "tiny")
    return folder


@pytest.fixture(scope="session")
def older_torch():
    """The folder with its packages, which is kept: to fetch them takes minutes."""
    folder = ROOT / ".cache" / f"torch-{OLDER}-{sysconfig.get_config_var('SOABI')}"
    if not folder.exists():
        filling = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        try:
            run(*pip, "install", "--no-deps", "--no-compile", "--target", filling, *OLDER_PACKAGES)
            filling.rename(folder)
        except AssertionError as failure:
            reasons = re.findall(r"^ *(ERROR: .*)", str(failure), re.MULTILINE)
            pytest.skip(f"torch {OLDER} cannot be had: {reasons[-1] if reasons else failure}")
        finally:
            shutil.rmtree(filling, ignore_errors=True)
    return folder


def environment(folder, wheel, packages):
    """The Python of a fresh environment with the wheel, which takes torch from elsewhere."""
    run(sys.executable, "-m", "venv", folder)
    python = folder / "bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "torch.pth").write_text(f"{packages}\n")
    run(python, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index", wheel)
    where = run(python, "-c", "import rankslice; print(rankslice.__file__)")
    assert Path(where.splitlines()[-1]).is_relative_to(folder)
    return python


def assert_same_folders(one, other):
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert files and files == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    assert filecmp.cmpfiles(one, other, files, shallow=False)[1:] == ([], [])


def assert_it_works_with(packages, version, wheel, checkpoint, folder):
    """With the torch that is among these packages, on two ranks."""
    python = environment(folder / "venv", wheel, packages)
    assert run(python, "-c", "import torch; print(torch.__version__)").splitlines()[-1].startswith(version)
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    run("timeout", "-k", 5, 120, *torchrun, ROUND_TRIP, checkpoint, folder / "out")
    assert_same_folders(checkpoint, folder / "out")


def test_it_works_with_the_torch_of_the_tests(wheel, checkpoint, tmp_path):
    packages, version = Path(sysconfig.get_path("purelib")), importlib.metadata.version("torch")
    assert not version.startswith(OLDER)
    assert_it_works_with(packages, version, wheel, checkpoint, tmp_path)


def test_the_same_works_with_an_older_torch(older_torch, wheel, checkpoint, tmp_path):
    assert_it_works_with(older_torch, OLDER, wheel, checkpoint, tmp_path)


def test_it_has_the_package_with_its_types_and_no_more(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    package = {name.removeprefix("rankslice/") for name in names if re.match("rankslice/.", name)}
    sources = {path.name for path in (ROOT / "src/python/rankslice").iterdir() if path.suffix in (".py", ".typed")}
    extensions = {name for name in package if name.endswith(".so")}
    assert [name.split(".")[0] for name in extensions] == ["_native"]
    assert package - extensions == sources | {"_native.pyi"}
    assert {name.split("/")[0].split("-")[0] for name in names} <= {"rankslice", "rankslice.libs"}


def test_it_shows_its_entry_point_alone(unpacked):
    (extension,) = unpacked.glob("rankslice/*.so")
    assert [line.split()[-1] for line in run("nm", "-D", "--defined-only", extension).splitlines()] == [
        "PyInit__native"
    ]


def test_it_brings_what_other_machines_may_lack(unpacked):
    (extension,) = unpacked.glob("rankslice/*.so")
    brought = {path.name for path in unpacked.glob("rankslice.libs/*")}
    for library in [extension, *unpacked.glob("rankslice.libs/*")]:
        needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library))
        assert needed and not [name for name in needed if name not in brought and not OF_THE_SYSTEM.fullmatch(name)]
    assert not [name for name in brought if re.match("lib(torch|c10|mpi|hdf5|python)", name)]
