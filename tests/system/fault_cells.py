"""The cells of the fault matrix, with what is expected of each, and the pairs that make no sense, with the reason."""

import os
import shutil
import signal

import h5py

import checkpoints
import reference
from fault_matrix import KILLED, TIMED_OUT, Cell
from program import run_ok

COLUMNS = ("open", "load", "verify", "store", "shards", "to_hf", "gather")
WRITERS = {"store": (2, 0), "shards": (2, 0), "to_hf": (2, 0), "gather": (0,)}  # ranks, of those that write tensors
WRITES = tuple(WRITERS)
READS = ("load", "verify", "to_hf", "gather")  # of tensors
STUCK = "delay_enter=100s"


# What is done to files and memory -----------------------------------------------------------------------------------


def shard(workshop, which):
    return reference.shard_files(workshop.ckpt)[which]


def truncate(path):
    os.truncate(path, path.stat().st_size - 100)


def replace_file(path):
    """By another one of the same size, as a job does that writes the checkpoint anew."""
    new = path.with_suffix(".new")
    shutil.copyfile(path, new)
    new.rename(path)


def flip_bit(path, at):
    """Of the byte there, without a trace in the size and the times of the file."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def input_of(workshop, operation, which=-1):
    return workshop.store if operation == "verify" else shard(workshop, which)


NORM = "model.language_model.norm.weight"  # every rank holds it
EXPERTS = "model.language_model.layers.0.mlp.experts.down_projs"  # the last two of six on rank 2


def norm_bytes(workshop):
    return reference.read_folder(workshop.ckpt)[NORM].bits.tobytes()


def expert_bytes(workshop):
    """Of expert 4, as ranks hold it."""
    with h5py.File(workshop.store) as store:
        experts = store["state_dict"][EXPERTS]
        size = experts.id.get_storage_size() // len(experts)
        begin = experts.id.get_offset() + 4 * size
    return workshop.store.read_bytes()[begin : begin + size]


def flip_in_store(workshop):
    flip_bit(workshop.store, workshop.store.read_bytes().index(norm_bytes(workshop)) + 5)


def write_manifest(workshop):
    run_ok("verify", workshop.ckpt, "--write-manifest")


def flip_behind_manifest(workshop):
    write_manifest(workshop)
    file = checkpoints.file_of(workshop.ckpt, NORM)
    flip_bit(file, file.read_bytes().index(norm_bytes(workshop)) + 5)


def flip_norm_in_memory(workshop, on_rank):
    flip_in_memory(on_rank.pid(2), norm_bytes(workshop))


def flip_expert_in_memory(workshop, on_rank):
    flip_in_memory(on_rank.pid(2), expert_bytes(workshop))


def flip_in_memory(pid, wanted):
    """One bit of some bytes, in every place where a process has them."""
    flipped = 0
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in maps:
            place, rights, *rest = line.split()
            if not rights.startswith("rw-p") or (len(rest) > 3 and rest[3].startswith("/")):
                continue
            begin, end = (int(number, 16) for number in place.split("-"))
            memory.seek(begin)
            content = memory.read(end - begin)
            at = content.find(wanted)
            while at >= 0:
                memory.seek(begin + at + 5)
                memory.write(bytes([content[at + 5] ^ 4]))
                flipped += 1
                at = content.find(wanted, at + 1)
    assert flipped, "the tensor is nowhere in the memory of the rank"


def kill_other(workshop, on_rank):
    os.kill(on_rank.pid(2), signal.SIGKILL)


def stop_other(workshop, on_rank):
    os.kill(on_rank.pid(2), signal.SIGSTOP)


# Ranks that come to an end, or to a stop ----------------------------------------------------------------------------


def ends():
    at = {"load": "read", "verify": "read", "store": "write", "shards": "write", "to_hf": "write", "gather": "read"}
    yield Cell("exits by itself", "load", rank=2, under="{bend} exit 9 {folder}", code=KILLED)
    yield Cell("exits by itself", "verify", rank=2, under="{bend} exit 9 {folder}", code=KILLED)
    for operation in WRITES:
        yield Cell("exits by itself", operation, rank=2, under="{bend} exit 20 {folder}", code=KILLED)
    yield Cell("SIGKILL", "gather", "write", 0, "signal=SIGKILL", code=KILLED)
    yield Cell("exits by itself", "to_hf", rank=0, under="{bend} exit 100 {folder}", code=KILLED)
    yield Cell("exits by itself", "open", rank=0, under="{bend} exit 3 {folder}", code=KILLED)
    yield Cell("SIGKILL", "open", "headers", 0, "signal=SIGKILL", code=KILLED)
    yield Cell("SIGKILL", "open", "headers", 2, holds=(0,), held=kill_other, code=KILLED)
    for operation, place in at.items():
        for rank in (2, 0):
            yield Cell("SIGKILL", operation, place, rank, "signal=SIGKILL", code=KILLED)
    for operation in WRITES:
        place = "read" if operation == "gather" else "write"
        yield Cell("SIGKILL", operation, place, 2, "signal=SIGKILL", code=KILLED, overwrite=True)
        yield Cell("SIGKILL", operation, "rename", 0, "signal=SIGKILL", code=KILLED, overwrite=True)
    yield Cell("SIGSTOP", "open", "headers", 0, "signal=SIGSTOP", code=TIMED_OUT, says=r"rank\(s\) 0 ", long=True)
    yield Cell("SIGSTOP", "open", "headers", 2, holds=(0,), held=stop_other, code=TIMED_OUT, says=r"rank\(s\) 2 ")
    for operation, place in at.items():
        for rank in (2, 0):
            daily = (operation, rank) in (("load", 2), ("verify", 2), ("store", 2), ("to_hf", 0))
            yield Cell(
                "SIGSTOP",
                operation,
                place,
                rank,
                "signal=SIGSTOP",
                code=TIMED_OUT,
                says=rf"no answer from rank\(s\) {rank} ",
                long=not daily,
            )
            yield Cell(
                "a call that never returns",
                operation,
                place,
                rank,
                STUCK,
                code=TIMED_OUT,
                says=rf"rank(\(s\))? {rank} ",
                long=(operation, rank) not in (("load", 0), ("to_hf", 2)),
            )


# Errors of the system -----------------------------------------------------------------------------------------------


def errors():
    io, full = "Input/output error", "No space left on device"
    yield Cell("EIO", "verify", "HDF5 open", 0, "error=EIO", code=74, says=io)
    yield Cell("EIO", "open", "headers", 0, "error=EIO", code=74, says=io)
    yield Cell("EIO", "open", "config", 0, "error=EIO", code=74, says=io)
    yield Cell("EIO", "open", "side file", 0, "error=EIO", code=74, says=f"tokenizer.json.*{io}")
    for operation in ("shards", "to_hf"):
        yield Cell("EIO", operation, "list", 0, "error=EIO", code=74, says=io)
        yield Cell("EIO", operation, "look", 0, "error=EIO", code=74, says=io)
    for operation in READS:
        for rank in (2, 0):
            yield Cell("EIO", operation, "read", rank, "error=EIO", code=74, says=io)
    for operation, writers in WRITERS.items():
        for rank in writers:
            yield Cell("EIO", operation, "write", rank, "error=EIO", code=74, says=io)
            yield Cell("EIO", operation, "sync", rank, "error=EIO", code=74, says=io)
            yield Cell("EIO", operation, "read back", rank, "error=EIO", code=74, says=io)
            yield Cell("ENOSPC", operation, "write", rank, "error=ENOSPC", code=74, says=full)
        yield Cell("ENOSPC", operation, "reserve", 0, "error=ENOSPC", code=73, says=full)
        yield Cell("EIO", operation, "rename", 0, "error=EIO", code=74, says=io)
        yield Cell("EIO", operation, "write", writers[0], "error=EIO", code=74, says=io, overwrite=True)
        yield Cell("EIO", operation, "rename", 0, "error=EIO", code=74, says=io, overwrite=True)
        yield Cell("ENOSPC", operation, "write", 0, "error=ENOSPC", code=74, says=full, overwrite=True)


# Calls that do not do all of it, or not what they say ---------------------------------------------------------------


def calls():
    storm = "pread64,pwrite64,fsync,fallocate"
    for operation in COLUMNS[1:]:
        # HDF5, which rank 0 uses, takes interrupted calls for failed ones, but for reads and writes.
        for rank, calls in ((2, f"openat,ftruncate,close,{storm}"), (0, storm)):
            yield Cell("EINTR storm", operation, rank=rank, calls=calls, inject="error=EINTR:when=1+2")
        for rank in (2, 0):
            yield Cell("short reads and writes", operation, rank=rank, under="{bend} short 7 {folder}")
    for operation, writers in WRITERS.items():
        differs = "reads? back differently|digest"
        for rank in writers:
            yield Cell("lying writes", operation, "write", rank, "retval=2", code=3, says=differs)
            changed = "poke_enter=@arg2=F7"
            yield Cell("changed on the way to disk", operation, "write", rank, changed, code=3, says=differs)
        yield Cell("lying writes", operation, "write", writers[0], "retval=2", code=3, says=differs, overwrite=True)
    yield Cell("lying reads", "open", "headers", 0, "poke_exit=@arg2=F7F7F7F7F7F7F7F7", code=65, says="header")
    changed = "poke_exit=@arg2=F7"
    for rank in (2, 0):
        yield Cell("lying reads", "verify", "read", rank, changed, code=3, says="store")
    for operation in ("load", "to_hf", "gather"):
        yield Cell("lying reads", operation, "read", 2, changed, before=write_manifest, code=3, says="manifest")


# Files that change --------------------------------------------------------------------------------------------------


def files():
    yield Cell("truncated file", "open", rank=0, before=lambda w: truncate(shard(w, 1)), code=65, says="00002-of-00003")
    yield Cell("flipped bit in a file", "open", rank=0, before=lambda w: flip_bit(shard(w, 1), 2), code=65)
    for operation in READS:
        yield Cell(
            "truncated file",
            operation,
            "first read",
            0,
            held=lambda w, _, op=operation: truncate(input_of(w, op)),
            holds=(0, 1, 2),
            code=74 if operation == "verify" else 65,  # a store has no tensor in its last bytes
        )
        yield Cell(
            "replaced file",
            operation,
            "first read",
            0,
            held=lambda w, _, op=operation: replace_file(input_of(w, op)),
            holds=(0, 1, 2),
            code=74,
            says="changed",
        )
        yield Cell(
            "file rewritten in place",
            operation,
            "first read",
            0,
            held=lambda w, _, op=operation: shutil.copyfile(w.folder / "spare", input_of(w, op, 0)),
            before=lambda w, op=operation: shutil.copyfile(input_of(w, op, 0), w.folder / "spare"),
            holds=(0, 1, 2),
            code=74,
            says="changed",
        )
    yield Cell("flipped bit in a file", "verify", before=flip_in_store, code=3, says=NORM)
    for operation in ("load", "to_hf", "gather"):
        yield Cell("flipped bit in a file", operation, before=flip_behind_manifest, code=3, says=NORM)
    yield Cell("flipped bit in memory", "load", "look", held=flip_norm_in_memory, code=3, says=f"rank 2: {NORM}")
    yield Cell("flipped bit in memory", "store", "open", held=flip_expert_in_memory, code=3, says="expert 4")
    yield Cell("flipped bit in memory", "shards", "open", held=flip_norm_in_memory, code=3, says=NORM)


_ALL = [*ends(), *errors(), *calls(), *files()]
_ORDER = list(dict.fromkeys(cell.fault for cell in _ALL))
CELLS = sorted(_ALL, key=lambda cell: (_ORDER.index(cell.fault), COLUMNS.index(cell.operation)))

NOTHING_WRITTEN = "nothing is written"
READ_ONLY = ("open", "load", "verify")
OF_WRITES = ("ENOSPC", "lying writes", "changed on the way to disk")
OF_READS = ("truncated file", "replaced file", "file rewritten in place", "lying reads", "flipped bit in a file")
NO_TENSORS = "tensors are not read then; see the operation that reads them"
IN_MEMORY = "tensors come from memory then; see load"
NO_SENSE = {
    **{(fault, of): NOTHING_WRITTEN for fault in OF_WRITES for of in READ_ONLY},
    **{(fault, of): IN_MEMORY for fault in OF_READS for of in ("store", "shards")},
    **{(fault, "open"): "see load: its job opens, too" for fault in ("EINTR storm", "short reads and writes")},
    **{(fault, "open"): NO_TENSORS for fault in ("replaced file", "file rewritten in place", "flipped bit in memory")},
    ("a call that never returns", "open"): "see SIGSTOP: the others cannot tell",
    **{("flipped bit in transit", of): "see tests/unit/*transit_faults_test.cpp" for of in COLUMNS},
    ("flipped bit in memory", "verify"): "no tensor is kept; see lying reads",
    ("flipped bit in memory", "to_hf"): "no tensor is kept; see lying reads and changed on the way to disk",
    ("flipped bit in memory", "gather"): "no tensor is kept; see lying reads and flipped bit in transit",
}
