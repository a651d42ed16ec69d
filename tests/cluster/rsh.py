#!/usr/bin/env python3
"""rsh.py [-OPTION]… [USER@]HOST COMMAND…: what mpirun starts its daemons on other hosts with.

As with rsh, the words of the command are joined and read by a shell there, which knows nothing of the environment
here and is no child of this process. What it says comes through this process, so that a host which stands still holds
nothing open here. A host that lost its power closes no connection: this process then waits until it is ended.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

REMOTE = 'sh -c "$0"; echo $? >&"$1"'


def pass_on(source, target):
    while data := os.read(source, 65536):
        os.write(target, data)
    os.close(source)


words = sys.argv[1:]
while words[0].startswith("-"):
    del words[0]
host = words.pop(0).rpartition("@")[2]
pipes = {name: os.pipe() for name in ("stdout", "stderr", "code")}
write_code = pipes["code"][1]
hosts = str(Path(__file__).with_name("hosts.sh"))
subprocess.run(
    ["setsid", "--fork", hosts, "on", host, "sh", "-c", REMOTE, " ".join(words), str(write_code)],
    env={name: os.environ[name] for name in ("PATH", "HOME")},
    stdin=subprocess.DEVNULL,
    stdout=pipes["stdout"][1],
    stderr=pipes["stderr"][1],
    pass_fds=[write_code],
)
for _, end in pipes.values():
    os.close(end)
threads = [threading.Thread(target=pass_on, args=(pipes[name][0], fd)) for name, fd in (("stdout", 1), ("stderr", 2))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
code = os.read(pipes["code"][0], 16)
while not code or Path(f"/run/hosts/{host}/cut").exists():
    signal.pause()
sys.exit(int(code))
