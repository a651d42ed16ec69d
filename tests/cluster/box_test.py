"""Outside the box: of a test on a cluster that is killed in its middle, nothing stays behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hosts import HERE

from program import PROGRAM, wait_until

BOX = HERE / "box.sh"
TEST = [sys.executable, "-m", "pytest", "-q", HERE / "test_lost_hosts.py"]
RANK = os.path.realpath(PROGRAM)


@pytest.fixture(autouse=True)
def can_be_made():
    tried = subprocess.run([BOX, "true"], capture_output=True, text=True)
    if tried.returncode == 77:
        pytest.skip(tried.stdout.removeprefix("skipped: ").strip())
    assert tried.returncode == 0, tried.stderr


def processes():
    """pid -> (namespace of processes, of networks, program), of all on the machine."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            spaces = [os.readlink(process / "ns" / kind) for kind in ("pid", "net")]
            found[int(process.name)] = (*spaces, os.readlink(process / "exe"))
        except OSError:  # gone, or of the kernel
            pass
    return found


def box_of(starter, found):
    """The namespace of processes of the box that a process has started, or None as long as there is none."""
    try:
        children = Path(f"/proc/{starter}/task/{starter}/children").read_text().split()
    except OSError:  # gone
        return None
    boxes = {box_of(int(child), found) or found.get(int(child), (None,))[0] for child in children}
    return next(iter(boxes - {None, found[os.getpid()][0]}), None)


def kept_by_mounts():
    """Namespaces that stay without a process."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return {line.split()[3] for line in lines if " - nsfs " in line}


@pytest.mark.parametrize("victim", ["the box", "who started it"])
def test_nothing_is_left_when_somebody_kills(victim):
    starter = subprocess.Popen(
        ["sh", "-c", '"$@"; true', "sh", BOX, *TEST], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    box = None

    def in_the_middle():
        """A rank on each of three hosts. All of the box are in its namespace of processes, whoever started them."""
        nonlocal box
        found = processes()
        box = box_of(starter.pid, found)
        ranks = {network for space, network, program in found.values() if (space, program) == (box, RANK)}
        return box and len(ranks) == 3

    wait_until(in_the_middle, 120, "a job on three hosts")
    networks = {network for space, network, _ in processes().values() if space == box}
    assert len(networks) == 4, "three hosts, and the box itself"
    (unshare,) = map(int, Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split())
    os.kill(unshare if victim == "the box" else starter.pid, signal.SIGKILL)
    starter.wait()

    def left():
        return [each for each in processes().values() if each[0] == box or each[1] in networks]

    wait_until(lambda: not left(), 60, "all processes of the box to end")
    assert not kept_by_mounts() & {box, *networks}
