"""launch/mpirun.sh: the command that it makes of hosts and options, and what becomes of ranks that it starts."""

import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import checkpoints
from program import MPIEXEC, PROGRAM, Run, marked_processes, run_ok, wait_until
from test_faults import in_the_middle

MPIRUN = Path(__file__).resolve().parents[2] / "launch/mpirun.sh"
LAUNCHERS = {"openmpi": ("mpirun.openmpi", "mpirun"), "mpich": ("mpiexec.hydra",)}
VERSION = subprocess.run([MPIEXEC, "--version"], capture_output=True, text=True).stdout
MPI = "mpich" if "HYDRA" in VERSION else "openmpi"  # which one this build is linked with
RANK = "rank=${OMPI_COMM_WORLD_RANK:-$PMI_RANK}; program=$1; shift $#;"  # begins the shell programs below
CORES = len(os.sched_getaffinity(0))


@pytest.fixture(params=LAUNCHERS)
def mpi(request):
    if not any(map(shutil.which, LAUNCHERS[request.param])):
        pytest.skip(f"{request.param} is not installed")
    return request.param


def script(*arguments, env=None):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RANKSLICE_", "SLURM_"))}
    command = [str(MPIRUN), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=kept | (env or {}))


def dry_run(*arguments, env=None):
    result = script("--dry-run", *arguments, "--", "true", env=env)
    assert result.returncode == 0, result.stderr
    return shlex.split(result.stdout)


def value_of(command, option):
    return command[command.index(option) + 1]


def hosts_of(command):
    return value_of(command, "--host" if "--host" in command else "-hosts")


def variable(command, name):
    """Of Open MPI's MCA variables on the command line."""
    return value_of(command, name) if name in command else None


def job(*options, shell, env=None, **how):
    """Ranks that run a shell program. `program` is the path of rankslice there."""
    under = [MPIRUN, *map(str, options), "--mpi", MPI, "--", "bash", "-c", RANK + shell, "bash"]
    return Run(under=under, env=env, **how)


def finish(*options, code=0, **how):
    with job(*options, **how) as running:
        result = running.finish()
    assert result.code == code, result.stderr
    return result


def rankslice(*arguments, options, **how):
    return Run(*arguments, under=[MPIRUN, *map(str, options), "--"], **how)


# Hosts and ranks ----------------------------------------------------------------------------------------------------

HOSTS = {  # what --hosts says, other options: who gets how many ranks
    ("a:2,b:2", ""): "a:2,b:2",
    ("a:2,b:2,c:1", "-n 3"): "a:2,b:1",
    ("a,b,c", "-n 5"): "a:2,b:2,c:1",
    ("a,b,c", "-n 4"): "a:2,b:1,c:1",
    ("a:4,b,c", "-n 8"): "a:4,b:2,c:2",
    ("a:8,b:8", "--per-node 4"): "a:4,b:4",
    ("a,b", "--per-node 4 -n 6"): "a:4,b:2",
    ("a,a,b,a,b", ""): "a:3,b:2",
    ("a:1,b:1,a:2", ""): "a:3,b:1",
}


@pytest.mark.parametrize("hosts, options", HOSTS)
def test_ranks_fill_the_hosts_in_their_order(mpi, hosts, options):
    command = dry_run("--mpi", mpi, "--hosts", hosts, *options.split())
    expected = HOSTS[hosts, options]
    assert hosts_of(command) == expected
    assert value_of(command, "-n") == str(sum(int(host.split(":")[1]) for host in expected.split(",")))


FILES = {
    "a slots=2\nb slots=2\n": "a:2,b:2",
    "# the cluster\n\n  a:2   # first\nb slots = 2 max_slots=4": "a:2,b:2",
    "a\na\nb\nb\n": "a:2,b:2",
}


@pytest.mark.parametrize("text", FILES, ids=["Open MPI", "both", "PBS"])
def test_a_file_of_hosts_is_read_in_the_forms_that_there_are(mpi, text, tmp_path):
    (tmp_path / "hosts").write_text(text)
    assert hosts_of(dry_run("--mpi", mpi, "--hosts", tmp_path / "hosts")) == FILES[text]


REFUSED = {
    "--hosts a:2,b:2 -n 5": "room for 4",
    "--hosts a,b": "-n or --per-node",
    "--hosts a:2 --per-node 4": "a has room for 2 ranks",
    "--hosts a:x": "not a host: a:x",
    "--hosts , -n 2": "names no host",
    "-n 0": "from 1 on",
    "-n": "-n",
    "--bind socket": "--bind",
    "--mpi lam": "--mpi",
    "--per-node 2 -n 3": "--per-node",
    f"--bind core -n {CORES + 1}": f"{CORES + 1} ranks",
    "--nonsense 3": "--nonsense",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_is_refused(options):
    result = script(*options.split(), "--", "true")
    assert result.returncode == 2 and REFUSED[options] in result.stderr, result.stderr


def test_hosts_programs_and_launchers_that_are_not_there(tmp_path):
    assert script("--hosts", tmp_path / "none", "--", "true").returncode == 66
    assert script("-n", 1, "--", tmp_path / "none").returncode == 127
    for tool in Path("/usr/bin").iterdir():
        if not re.match("mpi|orte|prte", tool.name):
            (tmp_path / tool.name).symlink_to(tool)
    for options in ([], ["--mpi", "openmpi"], ["--mpi", "mpich"]):
        result = script(*options, "--", "true", env={"PATH": str(tmp_path)})
        assert result.returncode == 69 and "mpirun" in result.stderr, result.stderr


def test_without_hosts_a_batch_job_has_its_own():
    command = dry_run("--mpi", MPI, "--per-node", 3, env={"SLURM_JOB_ID": "7"})
    assert not {"-n", "--host", "-hosts"} & set(command)
    assert "ppr:3:node" in command if MPI == "openmpi" else value_of(command, "-ppn") == "3"


# The command --------------------------------------------------------------------------------------------------------


def number_in(version):
    return re.search(r"\d+\.\d+(\.\d+)?", version)[0]


def test_a_program_is_started_by_the_mpirun_of_its_own_mpi():
    result = script("--dry-run", "-n", 2, "--", PROGRAM, "load", "a checkpoint")
    command = shlex.split(result.stdout)
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    assert number_in(version) == number_in(VERSION) and ("HYDRA" in version) == (MPI == "mpich")
    assert command[-3:] == [str(PROGRAM), "load", "a checkpoint"]


def test_the_command_that_is_printed_does_the_same(tmp_path):
    out = script(
        "--dry-run", "--mpi", MPI, "-n", 2, "--", "bash", "-c", 'echo it  runs >>"$0"', tmp_path / "a file"
    ).stdout
    subprocess.run(["bash", "-c", out], check=True, timeout=60)
    assert (tmp_path / "a file").read_text() == "it runs\n" * 2


needs_openmpi = pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="Open MPI is not installed")
BETWEEN_HOSTS = ["--mpi", "openmpi", "--hosts", "10.1.0.1:1,10.2.0.1:1"]


def dry_run_beside(interfaces, *options, env=None):
    """On a machine that has these network interfaces: name -> its address."""
    lines = [line for name in interfaces for line in (f"ip link add {name} type bridge", f"ip link set {name} up")]
    lines += [f"ip addr add {address} dev {name}" for name, address in interfaces.items() if address]
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    made = subprocess.run([*unshare, "sh", "-ec", "\n".join(lines)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"cannot make network interfaces: {made.stderr.strip()}")
    lines += ["ip route add default via 10.9.0.2"] if "10.9.0.1/24" in interfaces.values() else []
    command = shlex.join([str(MPIRUN), "--dry-run", *BETWEEN_HOSTS, *options, "--", "true"])
    done = subprocess.run(
        [*unshare, "sh", "-ec", "\n".join([*lines, command])],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=os.environ | (env or {}),
    )
    return shlex.split(done.stdout)


def left_out(command):
    names = {variable(command, f"{framework}_if_exclude") for framework in ("btl_tcp", "oob_tcp")}
    assert len(names) == 1
    (names,) = names
    return names and set(names.split(","))


GUESTS = ["docker0", "br-0123456789ab", "virbr0", "veth12"]
NETWORKS = ["br-ex", "br-storage", "bridge0", "br-01234567"]  # people name theirs like this


@needs_openmpi
def test_between_hosts_open_mpi_uses_no_interface_of_guests():
    assert left_out(dry_run_beside(dict.fromkeys([*GUESTS, *NETWORKS]))) == {"lo", *GUESTS}
    assert left_out(dry_run_beside(dict.fromkeys(NETWORKS))) is None


@needs_openmpi
def test_what_leads_to_other_hosts_is_used_whatever_its_name():
    interfaces = {"docker0": "10.1.0.9/24", "virbr0": "10.9.0.1/24", "docker1": "10.3.0.1/24"}
    assert left_out(dry_run_beside(interfaces)) == {"lo", "docker1"}


@needs_openmpi
@pytest.mark.parametrize("lists", ["include", "exclude"])
def test_what_a_file_says_to_open_mpi_about_interfaces_is_left_to_it(lists, tmp_path):
    (tmp_path / ".openmpi").mkdir()
    (tmp_path / ".openmpi/mca-params.conf").write_text(f"btl_tcp_if_{lists} = docker1\n")
    command = dry_run_beside({"docker0": None}, env={"HOME": str(tmp_path)})
    assert not {"btl_tcp_if_include", "btl_tcp_if_exclude"} & set(command)
    assert variable(command, "oob_tcp_if_exclude") == "lo,docker0"


@needs_openmpi
def test_open_mpi_uses_the_interfaces_that_are_named_and_finds_lost_links():
    command = dry_run("--mpi", "openmpi", "--hosts", "a:1,b:1", "--interfaces", "eth1,10.1.0.0/16")
    for name in ("btl_tcp_if_include", "oob_tcp_if_include"):
        assert variable(command, name) == "eth1,10.1.0.0/16"
    assert left_out(command) is None
    assert int(variable(command, "oob_tcp_keepalive_time")) <= 30
    assert variable(dry_run("--mpi", "openmpi", "-n", 2), "oob_tcp_keepalive_time") is None


@needs_openmpi
def test_what_the_environment_says_to_open_mpi_is_left_to_it():
    env = {"OMPI_MCA_btl_tcp_if_include": "eth1", "OMPI_MCA_oob_tcp_keepalive_time": "3"}
    command = dry_run_beside({"docker0": None}, env=env)
    assert not {"btl_tcp_if_include", "btl_tcp_if_exclude", "oob_tcp_keepalive_time"} & set(command)
    assert {"oob_tcp_if_exclude", "oob_tcp_keepalive_intvl"} <= set(command)


@needs_openmpi
def test_variables_go_along_to_other_hosts_with_open_mpi():
    going = {"RANKSLICE_TIMEOUT": "9", "LD_LIBRARY_PATH": "/opt/lib", "UCX_TLS": "rc", "NCCL_SOCKET_IFNAME": "ib0"}
    env = going | {"OTHER": "x", "NO_NCCL_": "x"}
    command = dry_run("--mpi", "openmpi", "--hosts", "a:1,b:1", "-x", "MINE=1", "-x", "THEIRS", env=env)
    taken = {command[i + 1] for i, word in enumerate(command) if word == "-x"}
    assert taken == {*going, "MINE=1", "THEIRS"}


def test_ranks_get_the_variables_that_they_are_given():
    result = finish("-n", 2, "-x", "GIVEN=a b", shell='echo "<$GIVEN>"')
    assert result.stdout == "<a b>\n" * 2


# Ranks --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny"
    run_ok("synth", path, "--preset", "tiny")
    return path


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_load_together(tiny, ranks, tmp_path):
    report = tmp_path / "report.json"
    with rankslice("load", tiny, "--report", report, "--json", options=["-n", ranks]) as running:
        result = running.finish()
    assert result.code == 0, result.stderr
    assert result.json["ranks"] == ranks
    name = result.json["versions"]["mpi"]
    number = number_in(VERSION)
    assert name == (f"MPICH {number}" if MPI == "mpich" else f"Open MPI v{number}")


def test_the_example_of_the_readme(tiny, tmp_path):
    readme = (MPIRUN.parents[1] / "README.md").read_text()
    (example,) = re.findall(r"^    (launch/mpirun.sh .*)$", readme, re.MULTILINE)
    (tmp_path / "hosts.txt").write_text("localhost slots=8\n")
    (tmp_path / "Qwen3.6-35B-A3B").symlink_to(tiny)
    (tmp_path / "launch").symlink_to(MPIRUN.parent)
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", example], cwd=tmp_path, check=True, timeout=60, env=os.environ | {"PATH": path})
    assert (tmp_path / "qwen.h5").exists()
    assert len(list((tmp_path / "logs").iterdir())) == 8


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_missing_checkpoint_ends_with_66(tmp_path, ranks):
    with rankslice("load", tmp_path / "none", options=["-n", ranks]) as running:
        assert running.finish().code == 66


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_difference_ends_with_3(mini, ranks, tmp_path):
    other = checkpoints.copy(mini, tmp_path / "other")
    file = next(path for path in sorted(other.iterdir()) if path.suffix == ".safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with rankslice("verify", mini, "--against", other, options=["-n", ranks]) as running:
        assert running.finish().code == 3


def test_a_rank_that_does_not_start_ends_the_job_with_75(mini):
    shell = f'[ $rank = 1 ] && kill -STOP $$; exec "$program" load {shlex.quote(str(mini))} --timeout 2'
    with job("-n", 2, shell=shell) as running:
        result = running.finish()
    assert "MPI did not start within 2.0 s" in result.stderr
    # MPICH's launcher kills the stopped rank, and has one code for all that happened.
    assert result.code == 75 if MPI == "openmpi" else result.code != 0


@pytest.mark.parametrize("code", [1, 42, 137])
def test_the_code_of_one_rank_is_that_of_the_job(code):
    finish("-n", 3, shell=f"[ $rank = 2 ] && exit {code}; sleep 20", code=code)


def test_a_killed_rank_ends_the_job_with_137():
    finish("-n", 3, shell="[ $rank = 2 ] && kill -KILL $$; sleep 20", code=137)


def test_each_rank_has_a_log_and_speaks_on_the_terminal_too(tmp_path):
    result = finish(
        "-n", 3, "--log-dir", tmp_path / "new" / "logs", shell='echo "I am $rank"; echo "warning of $rank" >&2; exit 0'
    )
    assert sorted(result.stdout.splitlines()) == [f"I am {rank}" for rank in range(3)]
    logs = {path.name: sorted(path.read_text().splitlines()) for path in (tmp_path / "new" / "logs").iterdir()}
    assert logs == {f"rank-0000{rank}.log": [f"I am {rank}", f"warning of {rank}"] for rank in range(3)}
    assert all(f"warning of {rank}" in result.stderr for rank in range(3))


def test_a_log_that_cannot_be_made_ends_the_job_with_73(tmp_path):
    (tmp_path / "file").touch()
    finish("-n", 2, "--log-dir", tmp_path / "file", shell="true", code=73)


@pytest.mark.parametrize("gpus", [None, "3,1"])
def test_ranks_see_the_gpus_that_the_job_has(gpus):
    given = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus, "HIP_VISIBLE_DEVICES": gpus}
    shell = 'echo "${CUDA_VISIBLE_DEVICES-none} ${HIP_VISIBLE_DEVICES-none}"'
    assert finish("-n", 2, shell=shell, env=given).stdout == f"{gpus or 'none'} {gpus or 'none'}\n" * 2


# Signals ------------------------------------------------------------------------------------------------------------

TOLD = 'trap "echo $rank has SIGTERM; exit 143" TERM; trap "echo $rank has SIGINT; exit 130" INT;'
WAITING = ' touch "$DIR/$rank"; while true; do sleep 0.05; done'


def started(folder, files):
    wait_until(lambda: len(list(folder.iterdir())) == files, 30, f"{files} files of the ranks")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_ranks(number, tmp_path):
    with job("-n", 3, shell=TOLD + WAITING, env={"DIR": str(tmp_path)}) as running:
        started(tmp_path, 3)
        running.signal_launcher(number)
        result = running.finish()
    # MPICH has one signal that it passes on.
    name = number.name if MPI == "openmpi" else "SIGTERM"
    assert sorted(result.stdout.splitlines()) == [f"{rank} has {name}" for rank in range(3)]
    assert result.code == 128 + number


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_stops_cleanly_and_the_job_says_so(number, tiny, tmp_path):
    out = tmp_path / "out.h5"
    under = [MPIRUN, "-n", "3", "--mpi", MPI, "--"]  # what is started is a script
    running, on_rank, pattern = in_the_middle(
        "load", tiny, out, tmp_path / "ranks", ranks=None, under=under, traced="all"
    )
    with running:
        on_rank.wait_for_call(2, pattern)
        running.signal_launcher(number)
        result = running.finish()
    assert result.code == 128 + number
    assert result.stderr.count("stopped on request") == 1
    assert not out.exists()


def test_a_second_signal_ends_ranks_that_do_not_care(tmp_path):
    env = {"DIR": str(tmp_path), "MPIRUN_GRACE_SECONDS": "600"}
    with job("-n", 2, shell="trap 'touch \"$DIR/told.$rank\"' TERM;" + WAITING, env=env) as running:
        started(tmp_path, 2)
        running.signal_launcher(signal.SIGTERM)
        started(tmp_path, 4)  # two signals at a time are one
        running.signal_launcher(signal.SIGTERM)
        assert running.finish().code == 143


def test_ranks_that_do_not_care_are_ended_after_a_while(tmp_path):
    env = {"DIR": str(tmp_path), "MPIRUN_GRACE_SECONDS": "1"}
    with job("-n", 2, shell="trap : TERM INT;" + WAITING, env=env) as running:
        started(tmp_path, 2)
        running.signal_launcher(signal.SIGINT)
        assert running.finish().code == 130


def test_nothing_is_left_of_a_job_whose_script_is_killed(tmp_path):
    with job("-n", 2, shell=WAITING, env={"DIR": str(tmp_path)}) as running:
        started(tmp_path, 2)
        running.signal_launcher(signal.SIGKILL)
        wait_until(lambda: not marked_processes(running.mark), 20, "all processes of the job to end")


@pytest.fixture
def tools(tmp_path):
    """A folder for programs that stand in for others."""
    (tmp_path / "tools").mkdir()
    return tmp_path / "tools"


def write_tool(folder, name, text):
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)
    return folder / name


def test_nothing_is_left_of_a_killed_script_whose_ranks_are_on_other_hosts(tools, tmp_path):
    write_tool(
        tools,
        "mpirun",
        f'[[ $1 != --version ]] || exec echo "mpirun (Open MPI) 4.1.4"; touch {tmp_path}/up; exec sleep 600',
    )
    under = [MPIRUN, "--mpi", "openmpi", "--hosts", "elsewhere:2", "--"]
    with Run("--version", under=under, env={"PATH": f"{tools}:{os.environ['PATH']}"}) as running:
        wait_until((tmp_path / "up").exists, 30, "the launcher")
        running.signal_launcher(signal.SIGKILL)
        wait_until(lambda: not marked_processes(running.mark), 20, "all processes of the job to end")


def test_a_daemon_that_waits_is_ended_when_the_last_rank_of_its_host_has_ended(tools, tmp_path):
    done = tmp_path / "done"
    rank = f"{MPIRUN.parent}/rank.sh -"
    daemon = write_tool(
        tools,
        "orted",  # the name by which it is known
        f"""{rank} timeout 30 bash -c 'until [[ -e {done} ]]; do sleep 0.05; done' &
        {rank} false
        sleep 3  # longer than the daemon may wait
        touch {done}
        wait
        echo both have ended
        while true; do sleep 0.1; done""",
    )
    result = subprocess.run(
        [daemon], capture_output=True, text=True, timeout=60, env=os.environ | {"MPIRUN_GRACE_SECONDS": "1"}
    )
    assert result.stdout == "both have ended\n"
    assert result.returncode == -signal.SIGKILL
