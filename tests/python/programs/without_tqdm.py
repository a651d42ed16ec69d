"""Arguments: CKPT OUT. Bars are asked for on all ranks, of which rank 0 has no tqdm: what each call raised."""

import sys
from pathlib import Path

from process_group import group_works, join, raised_by, report

import rankslice
from rankslice import _stores

ckpt, out = sys.argv[1], Path(sys.argv[2])
rank, size = join()
state = rankslice.load(ckpt)
if rank == 0:
    sys.modules["tqdm.auto"] = None
calls = {
    "load": lambda: rankslice.load(ckpt, progress=True),
    "load_into": lambda: rankslice.load_into(state, ckpt, progress=True),
    "to_hf": lambda: rankslice.to_hf(state, out / "hf", progress=True),
    "save_shards": lambda: rankslice.save_shards(state, out / "shards", progress=True),
    "verify": lambda: rankslice.verify(state, progress=True),
    "gather": lambda: rankslice.gather(state, progress=True),
}
if _stores.library() is not None:
    calls["save_store"] = lambda: rankslice.save_store(state, out / "store.h5", progress=True)
report({"raised": {name: raised_by(call) for name, call in calls.items()}, "group_works": group_works()})
