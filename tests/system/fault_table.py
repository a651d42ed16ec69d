"""FAULTS.md: what came of each cell of the fault matrix, written and read."""

from pathlib import Path

from fault_cells import CELLS, COLUMNS, NO_SENSE

PATH = Path(__file__).with_name("FAULTS.md")
INTRODUCTION = """\
# Faults, and what comes of them

Each line is a job of three ranks on a tiny checkpoint, started by Open MPI's mpirun; one rank was struck, by strace, by
a signal, or by a change of its files or its memory. `tests/system/test_fault_matrix.py` runs them and compares what
happens with this file, which `pytest tests/system/test_fault_matrix.py --update-faults` writes (with
`SYSTEM_TEST_LONG=1` those marked *long*, too). No process was left of any job, all ended within the deadline and thirty
seconds, and inputs stayed as they were.
"""
GRID = """
## Exit codes

Of all ranks; 137 and 3 at *SIGKILL* and *exits by itself* are mpirun's, for which a rank was lost. 75: the deadline
passed.
"""
LINES = """
## What each job did

*said*: the one message on stderr; *on disk*: under the name of the output. Numbers that vary are "…".
"""
HEAD = ["fault", "struck while", "moment", "rank", "exit code", "said", "on disk", "run"]


def line_of(cell, outcome):
    said = "; ".join(outcome.said).replace("|", r"\|")
    return [*cell.key, outcome.code, said, outcome.disk, "long" if cell.long else ""]


def read():
    """The lines of the table by their cells' keys."""
    if not PATH.exists():
        return {}
    rows = [line.strip("| \n").split(" | ") for line in PATH.read_text().split(LINES)[-1].splitlines()]
    rows = [[word.strip() for word in row] for row in rows]
    rows = [row + [""] * (len(HEAD) - len(row)) for row in rows]
    return {tuple(row[:4]): row for row in rows[3:]}


def render(lines):
    """The whole text, from lines by key."""
    rows = [lines[cell.key] for cell in CELLS if cell.key in lines]
    text = INTRODUCTION + GRID + "\n" + table(["fault", *COLUMNS], grid(rows))
    reasons = "".join(f"- {fault}, {operation}: {why}\n" for (fault, operation), why in NO_SENSE.items())
    return text + "\n– makes no sense or is not told apart:\n\n" + reasons + LINES + "\n" + table(HEAD, rows)


def grid(rows):
    codes = {}
    for fault, operation, _, _, code, *_ in rows:
        codes.setdefault(fault, {}).setdefault(operation, set()).add(code)
    for fault, operation in NO_SENSE:
        codes.setdefault(fault, {}).setdefault(operation, {"–"})
    return [[fault, *(", ".join(sorted(by.get(name, {""}))) for name in COLUMNS)] for fault, by in codes.items()]


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
