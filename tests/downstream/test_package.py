"""The installed package, from outside: installed, moved elsewhere, found by CMake and by pkg-config, and used."""

import filecmp
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from subprocess import PIPE

import h5py
import numpy
import pytest
import torch
from safetensors import safe_open

HERE = Path(__file__).resolve().parent
BUILD = Path(os.environ["PACKAGE_TEST_BUILD"])
CMAKE = os.environ["PACKAGE_TEST_CMAKE"]
CXX = os.environ["PACKAGE_TEST_CXX"]
MPIEXEC = os.environ["PACKAGE_TEST_MPIEXEC"]
LIBTORCH = os.environ["PACKAGE_TEST_LIBTORCH"]
WARNINGS = "-Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Werror"
DOWN = "model.language_model.layers.0.mlp.experts.down_proj"
GATE_AND_UP = "model.language_model.layers.1.mlp.experts.gate_up_proj"


def run(*command, env=None, timeout=120):
    kept = {key: value for key, value in os.environ.items() if key != "LD_LIBRARY_PATH"}
    return subprocess.run(
        list(map(str, command)),
        capture_output=True, text=True, timeout=timeout, env=kept | (env or {}),
    )  # fmt: skip


def run_ok(*command, **how):
    result = run(*command, **how)
    assert result.returncode == 0, f"{command}: exit code {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout


def mpirun(ranks, *command):
    return run("timeout", "-k", "5", "60", MPIEXEC, "--allow-run-as-root", "--oversubscribe", "-n", ranks, *command)


# The package and those who use it ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def installed_to(tmp_path_factory):
    return tmp_path_factory.mktemp("installed") / "prefix"


@pytest.fixture(scope="session")
def package(installed_to):
    """The prefix of the package, which is not the one that it was installed to."""
    run_ok(CMAKE, "--install", BUILD, "--prefix", installed_to)
    return installed_to.rename(installed_to.with_name("moved"))


def config_folder(prefix):
    return next(prefix.rglob("rankslice-config.cmake")).parent


def configure(source, build, prefix, *options):
    always = f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_CXX_COMPILER={CXX}", f"-DCMAKE_CXX_FLAGS={WARNINGS}"
    return run(CMAKE, "-S", source, "-B", build, *always, *options)


def build_with_cmake(example, build, prefix, *options):
    """The program of an example; the folder that it is built in is none of the project's."""
    result = configure(HERE / example, build, prefix, "-DCMAKE_BUILD_TYPE=Release", *options)
    assert result.returncode == 0, result.stdout + result.stderr
    run_ok(CMAKE, "--build", build)
    return build / example


def build_with_pkg_config(example, build, prefix, compiler, *modules):
    folder = next(prefix.rglob("rankslice.pc")).parent
    flags = run_ok("pkg-config", "--cflags", "--libs", "--static", *modules, env={"PKG_CONFIG_PATH": str(folder)})
    build.mkdir()
    run_ok(compiler, "-std=c++20", HERE / example / "main.cpp", *flags.split(), "-o", build / example)
    return build / example


def find_package(folder, prefix, arguments, *options, languages="C CXX", after=""):
    """How `find_package(rankslice ARGUMENTS)` goes."""
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\n"
        f"project(consumer LANGUAGES {languages})\n"
        f"find_package(rankslice {arguments})\n"
        f"{after}\n"
    )
    return configure(folder, folder / "build", prefix, *options)


def refusal(result):
    """What CMake says when it refuses; its lines are wrapped at its own discretion."""
    assert result.returncode != 0, result.stdout
    return " ".join(result.stderr.split())


# What they load ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def checkpoint(package, tmp_path_factory):
    """Eight experts in each layer, written by the installed program."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    run_ok(package / "bin/rankslice", "synth", folder, "--family", "qwen3_5_moe", "--preset", "tiny")
    return folder


def stored(checkpoint, hf_key):
    """A tensor of the checkpoint, as the safetensors package reads it."""
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if hf_key in file.keys():
                return file.get_tensor(hf_key)
    raise KeyError(hf_key)


def tensor_count(checkpoint):
    count = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            count += len(file.keys())
    return count


def shown(fqn, values, offset):
    """The line that rank_local prints of a tensor."""
    first = " ".join(f"{value:g}" for value in values.flatten()[:4].tolist())
    return f"{fqn}: {list(values.shape)} at {[offset] + [0] * (values.dim() - 1)}, begins with {first}"


def equal_folders(one, other):
    files = {folder: [path for path in folder.rglob("*") if path.is_file()] for folder in (one, other)}
    names = {path.relative_to(folder).as_posix() for folder, paths in files.items() for path in paths}
    _, different, missing = filecmp.cmpfiles(one, other, names, shallow=False)
    return names and not different and not missing


# The prefix can be moved ---------------------------------------------------------------------------------------------


def test_no_file_for_cmake_or_pkg_config_names_the_machine_it_was_made_on(package, installed_to):
    files = [*config_folder(package).iterdir(), *package.rglob("*.pc")]
    assert len(files) > 6
    for file in files:
        text = file.read_text()
        for place in (installed_to, BUILD, HERE.parents[1]):
            assert str(place) not in text, file


def test_headers_are_those_of_the_project(package):
    found = sorted(path.name for path in (package / "include").rglob("*.*"))
    expected = sorted(path.name for path in (HERE.parents[1] / "include/rankslice").iterdir())
    for part in ("torch", "cuda", "nccl"):
        if not list((package / "lib").rglob(f"librankslice_{part}.a")):
            expected.remove(f"{part}.hpp")
    assert found == expected


def test_the_moved_program_runs(package):
    assert run_ok(package / "bin/rankslice", "--version").split()[-1] == "0.1.0"


# rank_local: the core alone, without MPI -----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["CMake", "pkg-config"])
def rank_local(request, package, tmp_path_factory):
    build = tmp_path_factory.mktemp("rank_local") / "build"
    if request.param == "pkg-config":
        return build_with_pkg_config("rank_local", build, package, CXX, "rankslice")
    foreign = ["MPI", "HDF5", "LibTorch", "nlohmann_json", "CLI11", "GTest"]
    without = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in foreign]
    without.append("-DPKG_CONFIG_EXECUTABLE=false")  # CMake's module for OpenSSL asks it, and must do without
    return build_with_cmake("rank_local", build, package, *without)


def test_rank_local_shows_the_slice_that_python_reads(rank_local, checkpoint):
    down, gate_and_up = stored(checkpoint, DOWN), stored(checkpoint, GATE_AND_UP)
    assert len(down) == len(gate_and_up) == 8
    owned = slice(3, 6)  # of 8 experts for 3 ranks: 3, 3 and 2
    fqns = DOWN.replace("down_proj", "down_projs"), GATE_AND_UP.replace("gate_up_proj", "gate_and_up_projs")
    norm = "model.language_model.norm.weight"
    assert run_ok(rank_local, checkpoint, 1, 3, *fqns, norm).splitlines() == [
        f"{tensor_count(checkpoint)} tensors",
        shown(fqns[0], down[owned].transpose(1, 2), 3),
        shown(fqns[1], gate_and_up[owned].transpose(1, 2), 3),
        shown(norm, stored(checkpoint, norm), 0),
    ]


def test_rank_local_says_what_is_missing(rank_local, tmp_path):
    result = run(rank_local, tmp_path / "nothing", 0, 1)
    assert result.returncode == 1
    assert str(tmp_path / "nothing") in result.stderr


def test_rank_local_is_linked_with_no_library_of_other_components(rank_local):
    libraries = run_ok("ldd", rank_local)
    assert "libstdc++" in libraries
    for foreign in ("mpi", "hdf5", "torch", "c10"):
        assert f"lib{foreign}" not in libraries


# own_communicator: some ranks of a program that has MPI --------------------------------------------------------------


@pytest.fixture(scope="module", params=["CMake", "pkg-config"])
def own_communicator(request, package, tmp_path_factory):
    build = tmp_path_factory.mktemp("own_communicator") / "build"
    if request.param == "CMake":
        return build_with_cmake("own_communicator", build, package)
    mpicxx = shutil.which("mpicxx", path=f"{Path(MPIEXEC).parent}:{os.environ['PATH']}")
    return build_with_pkg_config("own_communicator", build, package, mpicxx, "rankslice-mpi", "rankslice-hdf5")


def test_own_communicator_stores_and_gives_back_the_checkpoint(own_communicator, package, checkpoint, tmp_path):
    store, exported = tmp_path / "store.h5", tmp_path / "exported"
    result = mpirun(3, own_communicator, checkpoint, store, exported)
    assert result.returncode == 0, result.stderr
    tensors = tensor_count(checkpoint)
    assert result.stdout.startswith(f"2 ranks hold {tensors} tensors and ")
    assert result.stdout.endswith(f"each was handed {tensors} HF tensors\n")
    assert equal_folders(checkpoint, exported)

    with h5py.File(store) as file:
        held = file["state_dict/" + DOWN.replace("down_proj", "down_projs")].astype(numpy.float32)[...]
    assert torch.equal(torch.from_numpy(held), stored(checkpoint, DOWN).transpose(1, 2).to(torch.float32))
    run_ok(package / "bin/rankslice", "to-hf", store, tmp_path / "back")
    assert equal_folders(checkpoint, tmp_path / "back")


def test_own_communicator_says_once_what_is_missing(own_communicator, tmp_path):
    result = mpirun(3, own_communicator, tmp_path / "nothing", tmp_path / "store.h5", tmp_path / "exported")
    assert result.returncode == 66
    assert result.stderr.count(f"loading rank 0: {tmp_path / 'nothing'}") == 1
    assert list(tmp_path.iterdir()) == []


# rank_threads: ranks that pass messages in a way of their own --------------------------------------------------------


@pytest.fixture(scope="module")
def rank_threads(package, tmp_path_factory):
    return build_with_cmake("rank_threads", tmp_path_factory.mktemp("rank_threads") / "build", package)


@pytest.mark.parametrize("ranks", [1, 3])
def test_rank_threads_hold_every_tensor_of_the_checkpoint(ranks, rank_threads, checkpoint):
    said = run_ok(rank_threads, checkpoint, ranks)
    assert said == f"{ranks} ranks hold {tensor_count(checkpoint)} tensors\n"


def test_rank_threads_say_once_what_is_missing(rank_threads, tmp_path):
    result = run(rank_threads, tmp_path / "nothing", 3)
    assert result.returncode == 66
    assert result.stderr.count(f"rank 0: {tmp_path / 'nothing'}") == 1


# training_rank: a job under torchrun ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def training_rank(package, tmp_path_factory):
    return build_with_cmake("training_rank", tmp_path_factory.mktemp("training_rank") / "build", package)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def as_torchrun_does(folders, program, *arguments):
    """What a rank for each folder, which it works in, ends with: exit code and standard error."""
    job = {"WORLD_SIZE": str(len(folders)), "MASTER_ADDR": "127.0.0.1"}
    command = list(map(str, [program, *arguments, free_port()]))
    ranks = [
        subprocess.Popen(command, cwd=folder, env=os.environ | job | {"RANK": str(rank)}, stderr=PIPE, text=True)
        for rank, folder in enumerate(folders)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]


def tensors_of(folder):
    """HF key -> dtype, shape and bytes."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                value = file.get_tensor(key)
                tensors[key] = value.dtype, value.shape, value.flatten().view(torch.uint8).numpy().tobytes()
    return tensors


def test_training_rank_changes_the_trained_tensor_and_no_other(training_rank, checkpoint, tmp_path):
    trained = tmp_path / "trained"
    assert as_torchrun_does([tmp_path, tmp_path], training_rank, checkpoint, trained) == [(0, "")] * 2
    expected = tensors_of(checkpoint)
    signs = torch.tensor(-(2**15), dtype=torch.int16)
    assert torch.equal(stored(trained, DOWN).view(torch.int16), stored(checkpoint, DOWN).view(torch.int16) ^ signs)
    found = tensors_of(trained)
    del expected[DOWN], found[DOWN]
    assert found == expected
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            assert (trained / path.name).read_bytes() == path.read_bytes(), path.name


def test_training_rank_runs_under_torchrun_itself(training_rank, checkpoint, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--no-python"]
    run_ok(*torchrun, training_rank, checkpoint, tmp_path / "trained", free_port())
    assert tensors_of(tmp_path / "trained").keys() == tensors_of(checkpoint).keys()


def test_a_file_that_is_bad_for_one_rank_ends_training_on_both_alike(training_rank, checkpoint, tmp_path):
    """Each rank has a copy of its own; rank 0 reads the headers for both."""
    folders = [tmp_path / "0", tmp_path / "1"]
    for folder in folders:
        shutil.copytree(checkpoint, folder / "checkpoint")  # with the times of the files
    cut = sorted((folders[1] / "checkpoint").glob("*.safetensors"))[0]
    size = cut.stat().st_size
    os.truncate(cut, size - 1)
    said = f"rank 1: checkpoint/{cut.name}: expected {size} bytes, as when its header was read, found {size - 1}\n"
    assert as_torchrun_does(folders, training_rank, "checkpoint", tmp_path / "trained") == [(65, said)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_training_rank_says_what_torchrun_would_have_set(training_rank):
    environment = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name in environment:
        left = {key: value for key, value in environment.items() if key != name}
        result = subprocess.run([training_rank, "a", "b", "1"], env=left, capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stderr) == (2, f"{name} is not set\n")
    result = run(training_rank, "a", "b", "1", env=environment | {"RANK": "first"})
    assert (result.returncode, result.stderr) == (2, "RANK is no number\n")


def code_in(readme):
    """The blocks of code, as they are without their indentation."""
    runs = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", readme, flags=re.MULTILINE)
    return [textwrap.dedent(run).strip("\n") for run in runs]


def test_the_readme_shows_training_rank_word_for_word():
    readme = (HERE.parents[1] / "README.md").read_text()
    program = (HERE / "training_rank/main.cpp").read_text()
    (shown_code,) = [block for block in code_in(readme) if "make_tcp_communicator" in block]
    assert f"\n\n{shown_code}\n\n" in program
    assert shown_code.startswith("void train(") and "to_hf(" in shown_code


# as_torch ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def as_torch(package, tmp_path_factory):
    if not LIBTORCH:
        pytest.skip("rankslice::torch is not built")
    build = tmp_path_factory.mktemp("as_torch") / "build"
    return build_with_cmake("as_torch", build, package, f"-DLIBTORCH_ROOT={LIBTORCH}")


def test_torch_gets_the_tensors_of_the_slice(as_torch, checkpoint):
    lines = run_ok(as_torch, checkpoint, 2, 3).splitlines()
    experts, rows, columns = stored(checkpoint, DOWN).shape
    assert len(lines) == tensor_count(checkpoint)
    assert f"{DOWN.replace('down_proj', 'down_projs')} c10::BFloat16 [2, {columns}, {rows}]" in lines
    assert experts == 8


# find_package --------------------------------------------------------------------------------------------------------

TARGETS = """
get_target_property(parts rankslice::rankslice INTERFACE_LINK_LIBRARIES)
message("parts: ${parts}")
"""


def test_without_components_it_gives_all_that_were_built(package, tmp_path):
    torch_root = [f"-DLIBTORCH_ROOT={LIBTORCH}"] if LIBTORCH else []  # CMake warns of what nobody asks for
    result = find_package(tmp_path / "all", package, "0.1 REQUIRED", *torch_root, after=TARGETS)
    built = ["core", "hdf5", "mpi", *(["torch"] if LIBTORCH else [])]
    assert result.stderr == f"parts: {';'.join(f'rankslice::{part}' for part in built)}\n"


def test_with_components_it_gives_those_and_the_core(package, tmp_path):
    result = find_package(tmp_path / "mpi", package, "0.1 REQUIRED COMPONENTS mpi", after=TARGETS)
    assert result.stderr == "parts: rankslice::core;rankslice::mpi\n"


@pytest.fixture(scope="module")
def package_of_core(package, tmp_path_factory):
    """The package as it would be without the other components."""
    prefix = shutil.copytree(package, tmp_path_factory.mktemp("core") / "prefix")
    for part in ("hdf5", "mpi", "torch", "cuda", "nccl"):
        for file in config_folder(prefix).glob(f"rankslice-{part}-targets*"):
            file.unlink()
    return prefix


@pytest.mark.parametrize("part", ["hdf5", "mpi", "torch", "cuda", "nccl"])
def test_a_component_that_was_not_built_is_refused_with_the_option_that_builds_it(part, package_of_core, tmp_path):
    said = refusal(find_package(tmp_path / part, package_of_core, f"0.1 REQUIRED COMPONENTS core {part}"))
    assert f"{config_folder(package_of_core)} was built without its component '{part}'." in said
    assert f"Configure rankslice with -DRANKSLICE_{part.upper()}=ON" in said


def test_an_optional_component_may_be_missing(package_of_core, tmp_path):
    after = TARGETS + 'message("mpi: ${rankslice_mpi_FOUND}")'
    result = find_package(tmp_path / "optional", package_of_core, "REQUIRED OPTIONAL_COMPONENTS mpi", after=after)
    assert result.stderr == "parts: rankslice::core\nmpi: FALSE\n"


def test_what_is_no_component_is_refused(package, tmp_path):
    said = refusal(find_package(tmp_path / "rocm", package, "REQUIRED COMPONENTS rocm"))
    assert "rankslice has no component 'rocm'. It has: core hdf5 mpi torch cuda nccl." in said


def test_another_minor_version_is_refused(package, tmp_path):
    assert 'compatible with requested version "0.2"' in refusal(find_package(tmp_path / "v", package, "0.2 REQUIRED"))


@pytest.mark.parametrize("components", ["COMPONENTS hdf5", ""])
def test_hdf5_in_a_project_without_c_is_refused_with_what_to_write(components, package, tmp_path):
    result = find_package(tmp_path / "cxx", package, f"REQUIRED {components}", languages="CXX")
    assert "Write project(… LANGUAGES C CXX)" in refusal(result)


@pytest.mark.parametrize("missing", ["PCRE2_8BIT_LIBRARY", "PCRE2_INCLUDE_DIR"])
def test_without_pcre2_it_says_what_to_install(missing, package, tmp_path):
    result = find_package(tmp_path / "no_pcre2", package, "REQUIRED COMPONENTS core", f"-D{missing}=")
    assert "install libpcre2-dev" in refusal(result)


@pytest.mark.skipif(not LIBTORCH, reason="rankslice::torch is not built")
def test_another_libtorch_than_it_was_built_with_is_refused(package, tmp_path):
    other = tmp_path / "torch"
    for name in ("include/ATen/core/Tensor.h", "lib/libtorch_cpu.so", "lib/libc10.so"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).touch()
    version = other / "include/torch/headeronly/version.h"
    version.parent.mkdir(parents=True)
    parts = {"MAJOR": 2, "MINOR": 7, "PATCH": 1}
    version.write_text("".join(f"#define TORCH_VERSION_{part} {number}\n" for part, number in parts.items()))
    said = refusal(find_package(tmp_path / "x", package, "REQUIRED COMPONENTS torch", f"-DLIBTORCH_ROOT={other}"))
    assert '"2.7.1", but required is exact version "' in said
