"""The hosts of the box (hosts.sh), and jobs on them."""

import json
import subprocess
from pathlib import Path

import program

HERE = Path(__file__).resolve().parent
SCRIPT = HERE / "hosts.sh"


class Hosts:
    """node1 … nodeN."""

    def __init__(self, count):
        self._script("up", count)
        self.names = [f"node{i + 1}" for i in range(count)]

    def _script(self, *arguments):
        done = subprocess.run([SCRIPT, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 0, f"hosts.sh {arguments}: {done.stderr}"
        return done.stdout

    def cut(self, host):
        self._script("cut", host)

    def mend(self, host):
        self._script("mend", host)

    def freeze(self, host):
        self._script("freeze", host)

    def thaw(self, host):
        self._script("thaw", host)

    def off(self, host):
        self._script("off", host)

    def boot(self, host):
        self._script("boot", host)

    def processes(self, host):
        """pid -> command line."""
        found = {}
        for pid in map(int, self._script("pids", host).split()):
            try:
                found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # gone
                pass
        return found

    def wait_until_idle(self, seconds=120):
        """Nothing of a job is on any of them."""
        program.wait_until(
            lambda: not any(map(self.processes, self.names)), seconds, "all processes on the hosts to end"
        )

    @staticmethod
    def on(host):
        """What a command is started with on a host."""
        return [str(SCRIPT), "on", host]

    def run(self, host, *command, **how):
        return subprocess.run([*self.on(host), *map(str, command)], capture_output=True, text=True, **how)

    def interface_bytes(self):
        """host -> (received, sent) by its network interface since it was switched on."""
        shown = json.loads(subprocess.check_output(["ip", "-json", "-stats", "link"]))
        counts = {link["ifname"]: link["stats64"] for link in shown}
        # What the bridge's end of a cable sends is what the host receives.
        return {host: (counts[host]["tx"]["bytes"], counts[host]["rx"]["bytes"]) for host in self.names}

    def reset(self):
        """Whatever a test did to them: all on, connected, and idle."""
        for host in self.names:
            self.off(host)
            self.boot(host)
