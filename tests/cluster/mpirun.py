"""Jobs of mpirun over the hosts."""

from hosts import HERE, Hosts

import program

ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_plm_rsh_agent": str(HERE / "rsh.py"),
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
}


def start(hosts, *arguments, per_host=2, **how):
    """`rankslice ARGUMENTS` on all hosts, by mpirun on the first one. Returns a `program.Run`."""
    slots = ",".join(f"{host}:{per_host}" for host in hosts.names)
    ranks = str(per_host * len(hosts.names))
    passed_on = how["on_rank"].environment() if how.get("on_rank") else {}
    exports = [word for name, value in passed_on.items() if value for word in ("-x", name)]
    command = [*Hosts.on(hosts.names[0]), program.MPIEXEC, "--host", slots, "-n", ranks, *exports]
    return program.Run(*arguments, under=command, env=ENVIRONMENT | how.pop("env", {}), **how)


def run_ok(hosts, *arguments, **how):
    with start(hosts, *arguments, **how) as job:
        result = job.finish()
    assert result.code == 0, f"{arguments}: exit code {result.code}\n{result.stderr}"
    hosts.wait_until_idle()
    return result
