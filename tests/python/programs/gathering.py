"""A rank of: gather in several ways, of a state over a mesh with `ep_shard`. Arguments: the checkpoint, ep_shard, how
many of the ranks, and a folder in which the tensors that this rank was given are left."""

import sys
from pathlib import Path

import torch
from process_group import join, raised_by, report

import rankslice

rank, size = join()
folder, ep_shard, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])


def gathered(way, state, **options):
    torch.save(dict(rankslice.gather(state, **options)), out / f"{way}-{rank}.pt")


state = rankslice.load(folder, ep_shard=ep_shard)
gathered("one", state)
gathered("last", state, rank=size - 1)
gathered("hosts", state, receivers="hosts")
gathered("all", state, receivers="all")
gathered("some", state, include=r".*\.mlp\.experts", exclude="mtp")
gathered("alone", rankslice.load(folder, rank=rank, world_size=size, ep_shard=ep_shard), receivers="all")
if ep_shard == 1:  # a plain dict does not say how its rows are divided
    gathered("of_a_dict", dict(state), source=folder, receivers="all")

options = {
    "absent": {"rank": size},
    "nothing": {"include": "no such name"},
    "unlike": {"include": "lm_head" if rank == 0 else "model"},
    "receivers": {"receivers": "some"},
}
refused = {
    name: raised_by(lambda given=given: list(rankslice.gather(state, **given))) for name, given in options.items()
}

trained = next(fqn for fqn in state if fqn.endswith("down_projs"))
state[trained].add_(1)
gathered("trained", state, receivers="all", include=r".*\.mlp\.experts\.down")
if rank == size - 1:
    state["lm_head.weight"].add_(1)
refused["unequal"] = raised_by(lambda: list(rankslice.gather(state, receivers="all")))
report({"refused": refused, "trained": trained})
