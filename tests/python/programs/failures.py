"""One rank alone fails in a step: what each of them is told, and that all work together afterwards. Arguments: a
folder that is no checkpoint, one that is not there, and the rank that fails."""

import sys
from functools import partial

from process_group import group_works, join, raised_by, report

from rankslice import _native, _world, errors

rank, size = join()
broken, absent, failing = sys.argv[1], sys.argv[2], int(sys.argv[3])
world = _world.communicator()


def open_alone(path):
    _native.open_checkpoint(path, None, "auto", "auto", "auto", None, None, "", False)


def fail(error):
    raise error


steps = {
    "broken": lambda: open_alone(broken),
    "absent": lambda: open_alone(absent),
    "ours": lambda: fail(errors.VerifyError("expert 3 differs", 3, "a.safetensors", "model.experts")),
    "plan": lambda: fail(errors.PlanError("no such mesh", 2)),
    "python": lambda: fail(KeyError("ours alone")),
}
told = {
    name: raised_by(partial(_native.on_every_rank, world, step if rank == failing else lambda: None))
    for name, step in steps.items()
}
report({"told": told, "communicator_works": world.sum([1]) == [size], "group_works": group_works()})
