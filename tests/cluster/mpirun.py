"""Jobs of mpirun over the hosts."""

import os
import subprocess

from hosts import HERE, Hosts

import program

LAUNCHER = HERE.parents[1] / "launch/mpirun.sh"
ENVIRONMENT = {"OMPI_MCA_plm_rsh_agent": str(HERE / "rsh.py")}


def start(hosts, *arguments, per_host=2, timeout=180, **how):
    """`rankslice ARGUMENTS` on all hosts, by mpirun on the first one. Returns a `program.Run`."""
    passed_on = how["on_rank"].environment() if how.get("on_rank") else {}
    exports = [word for name, value in passed_on.items() if value for word in ("-x", name)]
    command = [*Hosts.on(hosts.names[0]), LAUNCHER, "--hosts", ",".join(hosts.names), "--per-node", per_host]
    env = ENVIRONMENT | how.pop("env", {})
    return program.Run(*arguments, under=[*command, *exports, "--"], env=env, timeout=timeout, **how)


def run_ok(hosts, *arguments, **how):
    with start(hosts, *arguments, **how) as job:
        result = job.finish()
    assert result.code == 0, f"{arguments}: exit code {result.code}\n{result.stderr}"
    hosts.wait_until_idle()
    return result


def shell(hosts, line, folder):
    """A line as people type it on the first host, in a folder with a `hostfile`."""
    env = os.environ | {
        "PATH": f"{program.PROGRAM.parent}:{os.environ['PATH']}",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_plm_rsh_agent": str(HERE / "rsh.py"),
        "OMPI_MCA_orte_default_hostfile": str(folder / "hostfile"),
    }
    command = ["timeout", "-k", "5", "180", *Hosts.on(hosts.names[0]), "bash", "-c", line]
    return subprocess.run(command, cwd=folder, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
