#!/usr/bin/env python3
"""rsh.py [-OPTION]… [USER@]HOST COMMAND…: what mpirun starts its daemons on other hosts with.

As with rsh, the words of the command are joined and read by a shell there, which knows nothing of the environment here.
What it says comes through this process, so that a host which stands still holds nothing open here. A host that lost its
power closes no connection: this process then waits until it is ended.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


def pass_on(source, target):
    while data := os.read(source.fileno(), 65536):
        os.write(target, data)


words = sys.argv[1:]
while words[0].startswith("-"):
    del words[0]
host = words.pop(0).rpartition("@")[2]
kept = 'exec env -i PATH="$PATH" HOME="$HOME" TMPDIR="$TMPDIR" sh -c "$0"'
remote = subprocess.Popen(
    [Path(__file__).with_name("hosts.sh"), "on", host, "sh", "-c", kept, " ".join(words)],
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
)
threads = [threading.Thread(target=pass_on, args=each) for each in ((remote.stdout, 1), (remote.stderr, 2))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
code = remote.wait()
while code == -signal.SIGKILL:
    signal.pause()
sys.exit(code if code >= 0 else 128 - code)
