#!/usr/bin/env python3
"""agreement_failures.py SCENARIO PROGRAM MPIEXEC [OPTION…]: a fault strikes one rank; the job must end, in time, as
documented.

Starts PROGRAM (agreement_program) with a deadline of 2 s and checks the launcher's status, the messages, and that no
process outlives the job. `--list` prints the scenarios.
"""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

TIMEOUT_MS = 2000
PATIENCE_S = 30  # far beyond deadline and launcher; only a hang takes longer


@dataclasses.dataclass
class Scenario:
    fault: str
    rank: int
    status: set[int]
    message: str = ""  # a pattern that stderr holds once
    speakers: int = 1  # or at most so often, where ranks in different communicators may find it at once
    ranks: int = 3
    at_least_s: float = 0.0


def under_mpich(scenario):
    """MPICH's launcher says 9 of ranks that SIGKILL ended, and at times after MPI_Abort, as it ends the others by it.

    And MPI_Abort waits for the first rank of a host: where that one is stopped, all others have the time to say so."""
    status = {9 if code == 137 else code for code in scenario.status}
    if 75 in status:
        return dataclasses.replace(scenario, status=status | {9}, speakers=max(scenario.speakers, scenario.ranks - 1))
    if scenario.fault == "fail_alone":  # the only failure that no agreement ends
        status |= {9}
    return dataclasses.replace(scenario, status=status)


def silent(ranks):
    return rf"^rankslice: error: no answer from rank\(s\) {ranks} \(host \S+\) within 2\.0 s$"


DIFFERENT_CALLS = r"^rankslice: error: the ranks wait for each other in different calls, for 2\.0 s now$"

SCENARIOS = {
    "all_is_well": Scenario("none", 0, {0}),
    "stopped_rank_is_named": Scenario("stop", 2, {75}, silent(2)),
    "stopped_rank_0_is_named": Scenario("stop", 0, {75}, silent(0)),
    "rank_stopped_before_a_collective_is_named": Scenario("stop_before_a_collective", 1, {75}, silent(1)),
    "rank_0_stopped_before_a_collective_is_named": Scenario("stop_before_a_collective", 0, {75}, silent(0)),
    # By rank 0, too, which waits for it in the world; and not rank 1, which waits for it in the part.
    "rank_stopped_in_a_part_is_named_by_its_rank_in_the_world": Scenario(
        "stop_in_a_part", 2, {75}, silent(2), speakers=2
    ),
    "slow_rank_is_waited_for": Scenario("work_slowly", 2, {0}, at_least_s=6),
    "slow_rank_0_is_waited_for": Scenario("work_slowly", 0, {0}, at_least_s=6),
    "slow_rank_between_collectives_is_waited_for": Scenario("work_slowly_between_collectives", 1, {0}, at_least_s=6),
    "slow_rank_0_between_collectives_is_waited_for": Scenario("work_slowly_between_collectives", 0, {0}, at_least_s=6),
    "silent_rank_is_named": Scenario("be_silent", 1, {75}, silent(1)),
    "rank_stuck_alone_ends_itself": Scenario(
        "be_silent", 0, {75}, r"^rankslice: error: rank 0 \(host \S+\): no progress within 7\.0 s$", ranks=1
    ),
    "failure_is_everyones": Scenario("fail", 2, {65}, r"^rank 2: model\.safetensors: cut short at byte 7$"),
    "failure_of_rank_0_is_everyones": Scenario("fail", 0, {65}, r"^rank 0: model\.safetensors: cut short at byte 7$"),
    "failure_outside_of_steps_is_told_at_once": Scenario("fail_alone", 1, {65}, r"^rank 1: : outside of any step$"),
    "different_calls_end_the_job": Scenario("call_something_else", 2, {75}, DIFFERENT_CALLS),
    # Rank 1 sends to rank 2, and rank 0 waits for both in the agreement.
    "transfer_arrives": Scenario("transfer", 0, {0}),
    "sender_that_stopped_is_named": Scenario("stop_in_a_transfer", 1, {75}, silent(1)),
    "receiver_that_stopped_is_named": Scenario("stop_in_a_transfer", 2, {75}, silent(2)),
    "rank_0_stopped_beside_a_transfer_is_named": Scenario("stop_in_a_transfer", 0, {75}, silent(0)),
    "sender_that_is_silent_is_named": Scenario("be_silent_in_a_transfer", 1, {75}, silent(1)),
    "receiver_that_is_silent_is_named": Scenario("be_silent_in_a_transfer", 2, {75}, silent(2)),
    "slow_sender_is_waited_for": Scenario("work_slowly_in_a_transfer", 1, {0}, at_least_s=6),
    "slow_receiver_is_waited_for": Scenario("work_slowly_in_a_transfer", 2, {0}, at_least_s=6),
    "sender_that_never_sends_ends_the_job": Scenario("forget_a_transfer", 1, {75}, DIFFERENT_CALLS),
    "receiver_that_never_receives_ends_the_job": Scenario("forget_a_transfer", 2, {75}, DIFFERENT_CALLS),
    # All send to rank 0.
    "rank_0_that_stopped_before_it_received_is_named": Scenario("stop_in_a_gather", 0, {75}, silent(0)),
    "rank_that_stopped_before_it_sent_to_rank_0_is_named": Scenario("stop_in_a_gather", 2, {75}, silent(2)),
    "slow_rank_0_is_waited_for_by_those_who_send_to_it": Scenario("work_slowly_in_a_gather", 0, {0}, at_least_s=6),
    # Open MPI's launcher ends the job and says how.
    "exited_rank_ends_the_job": Scenario("exit", 1, {3}),
    "killed_rank_ends_the_job": Scenario("kill", 1, {137}),
}


def processes_with(marker):
    """The processes whose environment holds `marker`, zombies (which have none) left out."""
    found = []
    for folder in pathlib.Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and marker in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            pass  # gone meanwhile, or another user's
    return found


def survivors(marker):
    """Who is still there after the launcher had a moment to clean up."""
    end = time.monotonic() + 5
    while (left := processes_with(marker)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def start(scenario, program, mpiexec, stderr, marker):
    arguments = [program, str(TIMEOUT_MS), scenario.fault, str(scenario.rank)]
    environment = os.environ | dict([marker.decode().split("=")])
    return subprocess.Popen([*mpiexec, "-n", str(scenario.ranks), *arguments], stderr=stderr, env=environment)


def problems_of(scenario, program, mpiexec):
    marker = f"AGREEMENT_TEST={os.getpid()}-{time.time_ns()}".encode()
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as stderr:
        launcher = start(scenario, program, mpiexec, stderr, marker)
        try:
            status = launcher.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            status = "a hang"
            launcher.kill()
        seconds = time.monotonic() - began
        left = survivors(marker)
        for process in left:
            os.kill(process, signal.SIGKILL)
        stderr.seek(0)
        text = stderr.read()
    print(text)
    if status not in scenario.status:
        yield f"ended with {status}, expected one of {scenario.status}"
    if left:
        yield f"left processes behind: {left}"
    found = re.findall(scenario.message, text, re.MULTILINE)
    if scenario.message and not 1 <= len(found) <= scenario.speakers:
        yield f"stderr holds {found}, expected {scenario.speakers} at most: {scenario.message}"
    if seconds < scenario.at_least_s:
        yield f"ended after {seconds:.1f} s, before the slow rank can have finished"


def main():
    if sys.argv[1:] == ["--list"]:
        print(";".join(SCENARIOS), end="")
        return 0
    name, program, *mpiexec = sys.argv[1:]
    version = subprocess.run([mpiexec[0], "--version"], capture_output=True, text=True).stdout
    scenario = under_mpich(SCENARIOS[name]) if "HYDRA" in version else SCENARIOS[name]
    problems = list(problems_of(scenario, program, mpiexec))
    for problem in problems:
        print(f"{name}: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
