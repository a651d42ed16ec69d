"""What can go wrong x what is going on: each cell is a job of three ranks that a fault strikes, and what came of it."""

import os
import re
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import reference
from program import HERE, OnRank, Run, leftovers, run_ok

RANKS = 3
DEADLINE = 3  # seconds, where a rank stops answering; elsewhere the default of five minutes
BEND_CALLS = Path(os.environ.get("BEND_CALLS_PROGRAM", HERE.parents[1] / "build/release/tests/system/bend_calls"))
CALLS = (
    "openat,newfstatat,statx,getdents64,pread64,pwrite64,fallocate,ftruncate,fsync,close,mkdir,renameat2,rename,unlink"
)
HOST = socket.gethostname()


# Where a job can be struck ------------------------------------------------------------------------------------------


OPERATIONS = {  # what a job does when it is struck: its arguments
    "open": ("load", "CKPT", "--store", "OUT"),
    "load": ("load", "CKPT", "--store", "OUT"),
    "verify": ("verify", "STORE"),
    "store": ("load", "CKPT", "--store", "OUT"),
    "shards": ("load", "CKPT", "--save-shards", "OUT"),
    "to_hf": ("to-hf", "CKPT", "OUT"),
    "gather": ("to-hf", "CKPT", "OUT", "--gather"),
}


@dataclass(frozen=True)
class Place:
    """A system call of a rank: of those that match, the one that stands `part` of the way through; but of those that
    come after the `nth` one that matches `after` where the rank makes so many."""

    words: str  # for people
    call: str
    path: str
    after: str = ""
    nth: int = 1
    part: float = 0.5


SHARD = r"ckpt/[^>\"]*\.safetensors>"
PARTIAL = r"out\.partial-"
OPENED = {"after": r"pread64\(.*config\.json>"}  # rank 0 has read all headers then; the others read none
OPENED_STORE = {"after": r"^close\(.*s\.h5>", "nth": 4}
PLACES = {
    ("open", "headers"): Place("reading headers", "pread64", SHARD, part=0.0),
    ("open", "config"): Place("reading config.json", "pread64", r"config\.json>"),
    ("open", "side file"): Place("looking at a side file", "newfstatat", r"tokenizer\.json", part=0.0),
    ("load", "read"): Place("reading tensors", "pread64", SHARD, **OPENED),
    ("load", "first read"): Place("reading the first tensor", "pread64", SHARD, **OPENED, part=0.0),
    ("load", "look"): Place("having read all", "newfstatat", SHARD, part=1.0),
    ("verify", "HDF5 open"): Place("opening the store by HDF5", "openat", r's\.h5", O_RDONLY\)', part=0.0),
    ("verify", "read"): Place("reading tensors", "pread64", r"s\.h5>", **OPENED_STORE),
    ("verify", "first read"): Place("reading the first tensor", "pread64", r"s\.h5>", **OPENED_STORE, part=0.0),
}
for operation in ("to_hf", "gather"):
    PLACES |= {
        (operation, "read"): Place("reading tensors", "pread64", SHARD, **OPENED),
        (operation, "first read"): Place("reading the first tensor", "pread64", SHARD, **OPENED, part=0.0),
    }
for operation in ("store", "shards", "to_hf", "gather"):
    writing = {"after": r"^openat\(.*out\.partial-.*O_WRONLY\|O_NOCTTY"}  # what comes before is made by rank 0 alone
    PLACES |= {
        (operation, "open"): Place("opening the output", "openat", PARTIAL + r".*O_WRONLY\|O_NOCTTY", part=0.0),
        (operation, "write"): Place("writing tensors", "pwrite64", PARTIAL, **writing, part=0.0),
        (operation, "sync"): Place("syncing", "fsync", PARTIAL, **writing, part=0.0),
        (operation, "read back"): Place("reading back", "pread64", PARTIAL, **writing, part=0.0),
        (operation, "reserve"): Place("reserving space", "fallocate", PARTIAL, part=0.0),
        (operation, "list"): Place("listing the output", "getdents64", PARTIAL, part=1.0),
        (operation, "look"): Place(
            "looking at the output", "newfstatat", PARTIAL + r"[^,]*/[^,]*, .*NOFOLLOW", part=1.0
        ),
        (operation, "rename"): Place("renaming", "renameat2", PARTIAL),
    }


class Workshop:
    """A folder with a checkpoint, a store of it, and room for an output."""

    def __init__(self, folder, ckpt, store, unfinished=()):
        """`unfinished`: names beside that of the output under which jobs fill it (`names_of_unfinished`)."""
        self.unfinished = [folder / name for name in unfinished]
        self.folder, self.ckpt, self.store = folder, folder / "ckpt", folder / "s.h5"
        self.out, self.ranks = folder / "out", folder / "ranks"
        shutil.copytree(ckpt, self.ckpt)
        shutil.copy2(store, self.store)

    def arguments(self, operation):
        names = {"CKPT": self.ckpt, "STORE": self.store, "OUT": self.out}
        return [names.get(argument, argument) for argument in OPERATIONS[operation]]

    def watched(self, folders=True):
        """Options of strace: only calls on the files of the job count, and those on its folders."""
        partials = [f"{self.out}.partial-{HOST}-%PID0%", *self.unfinished]
        inside = [path.name for path in self.ckpt.iterdir()] + [f"rank-{rank:05}.safetensors" for rank in range(RANKS)]
        paths = [self.folder, self.ckpt] if folders else []
        paths += [self.store, self.out, *partials]
        paths += [f"{partial}{suffix}" for partial in self.unfinished for suffix in (".progress", ".progress.new")]
        paths += [f"{above}/{name}" for above in (self.ckpt, *partials) for name in inside]
        return " ".join(f"-P {path}" for path in paths)


def names_of_unfinished(operation, folder, originals):
    """Under which names a job fills its output where these can be known: the same for all copies of a checkpoint."""
    workshop = Workshop(folder, *originals)
    on_rank = OnRank(workshop.ranks, traced="0", strace="-e trace=renameat2")
    run_ok(*workshop.arguments(operation), ranks=RANKS, on_rank=on_rank)
    traced = "".join(trace.read_text() for trace in on_rank.traces(0))
    return set(re.findall(r"/(out\.partial-[0-9a-f]{16})\"", traced))


def profile(operation, workshop):
    """The calls of an undisturbed job, by rank."""
    on_rank = OnRank(workshop.ranks, traced="all", strace=f"-e trace={CALLS} {workshop.watched()}")
    run_ok(*workshop.arguments(operation), ranks=RANKS, on_rank=on_rank)
    return {
        rank: [line for trace in on_rank.traces(rank) for line in trace.read_text().splitlines() if "(" in line]
        for rank in range(RANKS)
    }


def ordinal(place, lines):
    """Which of a rank's calls of this kind it is, counted as strace does."""
    behind = [i for i, line in enumerate(lines) if place.after and re.search(place.after, line)]
    begin = behind[place.nth - 1] + 1 if len(behind) >= place.nth else 0
    pattern = re.compile(rf"^{place.call}\(.*{place.path}")
    matches = [i for i in range(begin, len(lines)) if pattern.search(lines[i])]
    assert matches, f"the job makes no call like {place}"
    at = matches[min(int(len(matches) * place.part), len(matches) - 1)]
    return sum(line.startswith(f"{place.call}(") for line in lines[: at + 1])


# Cells --------------------------------------------------------------------------------------------------------------

KILLED, TIMED_OUT = "killed", "timed out"


@dataclass(frozen=True)
class Cell:
    fault: str
    operation: str
    place: str = ""  # of PLACES; none for what is done before the start, or all the time
    rank: int = 2
    inject: str = ""  # into the call at the place, or into all of `calls`
    calls: str = ""
    under: str = ""  # a program that starts the rank
    before: Callable | None = None  # done to the workshop
    held: Callable | None = None  # done while ranks are stopped right after the call
    holds: tuple = ()  # these ranks, or the rank itself
    code: int | str = 0  # of every rank; or how the launcher ended the job
    says: str = ""  # a pattern that the one message has
    overwrite: bool = False
    long: bool = False
    options: tuple = ()

    @property
    def struck(self):
        """The ranks of which a call is."""
        return (self.holds or (self.rank,)) if self.place else ()

    @property
    def moment(self):
        words = PLACES[self.operation, self.place].words if self.place else "from the beginning"
        return f"{words}, over an old output" if self.overwrite else words

    @property
    def key(self):
        """What its line of the table begins with."""
        return self.fault, self.operation, self.moment, f"{self.rank}"


@dataclass
class Outcome:
    """What a job came to, in words that are the same every time."""

    code: str
    said: list = field(default_factory=list)
    disk: str = ""


def strike(cell, workshop, when, whole):
    """Run the job of a cell. `when`: rank -> the number of the call that is struck; `whole`: the undisturbed output."""
    if cell.overwrite:
        run_ok(*workshop.arguments(cell.operation))
    old = contents(workshop.out)
    if cell.before:
        cell.before(workshop)
    source = contents(workshop.ckpt), contents(workshop.store)
    killed = cell.code in (KILLED, TIMED_OUT)
    on_rank = struck_rank(cell, workshop, when, codes=not killed)
    arguments = [*workshop.arguments(cell.operation), *cell.options]
    if cell.overwrite:
        arguments.append("--overwrite")
    if cell.code == TIMED_OUT:
        arguments += ["--timeout", DEADLINE]
    with Run(*arguments, ranks=RANKS, on_rank=on_rank, timeout=DEADLINE + 30) as job:
        if cell.held:
            for rank in cell.struck:
                on_rank.wait_for_stop(rank)
            cell.held(workshop, on_rank)
            for rank in cell.struck:
                continue_rank(on_rank, rank)
        result = job.finish()
    if not (cell.held or cell.before):
        assert (contents(workshop.ckpt), contents(workshop.store)) == source, "an input was changed"
    return describe(cell, workshop, result, old, whole)


def struck_rank(cell, workshop, when, codes):
    if cell.under:
        under = cell.under.format(bend=BEND_CALLS, folder=workshop.folder)
        return OnRank(workshop.ranks, traced=str(cell.rank), under=under, codes=codes)
    if not when and not cell.calls:
        return OnRank(workshop.ranks, codes=codes)
    watched = workshop.watched(folders=not cell.calls)
    if cell.calls:
        options = f"-e trace={cell.calls} -e inject={cell.calls}:{cell.inject} {watched}"
        return OnRank(workshop.ranks, traced=str(cell.rank), strace=options, codes=codes)
    call = PLACES[cell.operation, cell.place].call
    inject = "signal=SIGSTOP" if cell.held else cell.inject
    options = {
        rank: f"-e trace={call} -e inject={call}:{inject}:when={number} {watched}" for rank, number in when.items()
    }
    return OnRank(workshop.ranks, strace=options, codes=codes)


def continue_rank(on_rank, rank):
    try:
        os.kill(on_rank.pid(rank), signal.SIGCONT)
    except ProcessLookupError:  # killed while it was held
        pass


def contents(path):
    if path.is_file():
        return path.read_bytes()
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    # The headers of shards name the folder that the checkpoint was in.
    skipped = {file: len(reference.raw_header(file)) if file.name.startswith("rank-") else 0 for file in files}
    return {str(file.relative_to(path)): file.read_bytes()[skip:] for file, skip in skipped.items()}


# What came of it ----------------------------------------------------------------------------------------------------

MASKS = [
    (rf"{re.escape(HOST)}-\d+", "…"),
    (rf"\b{re.escape(HOST)}\b", "HOST"),
    (r"\b[0-9a-f]{16}\b", "…"),
    (r"\b[0-9a-f]{32}\b", "…"),
    (r"\[\d+, \d+\) failed at \d+", "[…) failed at …"),
    (r"\[\d+, \d+\)", "[…)"),
    (r"\d+ bytes cannot be reserved, the file system has \d+", "… bytes cannot be reserved, the file system has …"),
]


def describe(cell, workshop, result, old, whole):
    errors = re.findall(r"^rankslice: error: (.*(?:\n  .*)*)", result.stderr, re.MULTILINE)
    if cell.code in (KILLED, TIMED_OUT):  # the launcher tells the others to stop, which some still obey
        errors = [error for error in errors if not error.endswith("stopped on request")]
    said = [masked(re.sub(r"\n  ", " ", error), workshop) for error in errors]
    return Outcome(code_of(cell, result), said, on_disk(cell, workshop, old, whole))


def masked(line, workshop):
    line = line.replace(f"{workshop.folder}/", "")
    for pattern, words in MASKS:
        line = re.sub(pattern, words, line)
    return line


def code_of(cell, result):
    if cell.code in (KILLED, TIMED_OUT):
        return f"{result.code}"
    assert sorted(result.rank_codes) == list(range(RANKS)), f"not every rank came to an end:\n{result.stderr}"
    codes = set(result.rank_codes.values())
    assert len(codes) == 1, f"{result.rank_codes}\n{result.stderr}"
    return f"{codes.pop()}"


def on_disk(cell, workshop, old, whole):
    rests, rest = leftovers(workshop.out), ""
    if cell.code in (KILLED, TIMED_OUT):
        rest = " (and perhaps `out.partial-…`)" if "write" in cell.place or "rename" in cell.place else ""
    else:
        assert not rests, f"left behind: {rests}"
    found = contents(workshop.out)
    if not found:
        return f"nothing{rest}"
    if cell.overwrite and found == old:
        return f"the old output{rest}"
    assert found == whole, "what was written is not what an undisturbed job writes"
    return f"the output{rest}"
