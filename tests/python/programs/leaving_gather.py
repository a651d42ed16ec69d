"""A rank of: loops over gather() that one rank leaves. Arguments: the checkpoint, who receives, and the rank that
leaves. Reports for each way what it raised, how many tensors it took, and whether the ranks can work together then."""

import gc
import sys

from process_group import group_works, join, raised_by, report

import rankslice

rank, size = join()
folder, receivers, leaver = sys.argv[1], sys.argv[2], int(sys.argv[3])
state = rankslice.load(folder)
taken = []


def left_by_break():
    for name, _ in rankslice.gather(state, receivers=receivers):
        taken.append(name)
        if rank == leaver and len(taken) == 3:
            break


def left_by_exception():
    for name, _ in rankslice.gather(state, receivers=receivers):
        taken.append(name)
        if rank == leaver and len(taken) == 3:
            raise LookupError("no room for it")


def left_in_a_context():
    with rankslice.gather(state, receivers=receivers) as tensors:
        for name, _ in tensors:
            taken.append(name)
            if rank == leaver and len(taken) == 3:
                raise LookupError("no room for it")


def forgotten_in_a_cycle():
    tensors = rankslice.gather(state, receivers=receivers)
    cycle = [tensors]
    cycle.append(cycle)
    for name, _ in tensors:
        taken.append(name)
        if rank == leaver and len(taken) == 3:
            del tensors, cycle
            gc.collect()
            return


def failing_progress():
    def progress(phase, done, total):
        if rank == leaver and phase == "gather":
            raise LookupError("nowhere to show it")

    for name, _ in rankslice.gather(state, receivers=receivers, progress=progress):
        taken.append(name)


def outcome(loop):
    taken.clear()
    raised = raised_by(loop)
    again = len(list(rankslice.gather(state, receivers="all")))
    return {"raised": raised, "taken": len(taken), "again": again, "group_works": group_works()}


ways = [left_by_break, left_by_exception, left_in_a_context, forgotten_in_a_cycle, failing_progress]
report({loop.__name__: outcome(loop) for loop in ways})
