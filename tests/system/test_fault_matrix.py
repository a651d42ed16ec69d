"""Every cell of the fault matrix ends as it should, and as FAULTS.md says."""

import re
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

import checkpoints
import fault_matrix
import fault_table
from fault_cells import CELLS, COLUMNS, NO_SENSE
from fault_matrix import KILLED, PLACES, TIMED_OUT, Workshop
from program import run_ok

AT_ONCE = 2


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    """A checkpoint whose file names hold no space, which options of strace could not name, and a store of it."""
    folder = tmp_path_factory.mktemp("originals")
    ckpt = checkpoints.write_mini(folder / "ckpt")
    for path in [*ckpt.glob("* *"), *ckpt.glob("*%*")]:
        path.unlink()
    run_ok("load", ckpt, "--store", folder / "s.h5")
    return ckpt, folder / "s.h5"


@pytest.fixture(scope="session")
def outcomes(request, originals, tmp_path_factory):
    """Cell -> what came of it. Two jobs go on at a time: many only wait."""
    cells = [item.callspec.params["cell"] for item in request.session.items if item.originalname == "test_cell"]
    calls, whole, unfinished = {}, {}, {}
    for operation in dict.fromkeys(cell.operation for cell in cells):
        folder = tmp_path_factory.mktemp("names")
        unfinished[operation] = fault_matrix.names_of_unfinished(operation, folder, originals)
        workshop = Workshop(tmp_path_factory.mktemp("undisturbed"), *originals, unfinished[operation])
        calls[operation] = fault_matrix.profile(operation, workshop)
        whole[operation] = fault_matrix.contents(workshop.out)

    def outcome_of(cell):
        workshop = Workshop(tmp_path_factory.mktemp("cell"), *originals, unfinished[cell.operation])
        lines = calls[cell.operation]
        when = {rank: fault_matrix.ordinal(PLACES[cell.operation, cell.place], lines[rank]) for rank in cell.struck}
        return fault_matrix.strike(cell, workshop, when, whole[cell.operation])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {cell.key: pool.submit(outcome_of, cell) for cell in cells}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def committed(request):
    """The lines of FAULTS.md, which `--update-faults` writes anew."""
    lines = fault_table.read()
    yield lines
    if request.config.getoption("update_faults"):
        fault_table.PATH.write_text(fault_table.render(lines))


def parameters():
    return [pytest.param(cell, id=", ".join(cell.key), marks=[pytest.mark.long] if cell.long else []) for cell in CELLS]


def expected_code(cell):
    if cell.code == KILLED:
        return 3 if cell.fault == "exits by itself" else 128 + signal.SIGKILL
    return 75 if cell.code == TIMED_OUT else cell.code


def expected_on_disk(cell):
    if cell.overwrite:
        return "the old output"
    return "the output" if cell.code == 0 and cell.operation != "verify" else "nothing"


@pytest.mark.usefixtures("strace")
@pytest.mark.parametrize("cell", parameters())
def test_cell(cell, outcomes, committed, request):
    if cell.under and not fault_matrix.BEND_CALLS.is_file():
        pytest.skip("bend_calls is made for x86-64 only")
    outcome = outcomes[cell.key].result()
    assert outcome.code == f"{expected_code(cell)}", outcome
    assert len(outcome.said) == (cell.code not in (0, KILLED)), outcome
    assert not cell.says or re.search(cell.says, outcome.said[0]), outcome
    assert outcome.disk.startswith(expected_on_disk(cell)), outcome
    if request.config.getoption("update_faults"):
        committed[cell.key] = fault_table.line_of(cell, outcome)
    assert committed[cell.key] == fault_table.line_of(cell, outcome)


def test_the_table_has_a_line_for_every_cell_and_no_other(committed, request):
    if request.config.getoption("update_faults"):
        pytest.skip("it is being written")
    assert committed.keys() == {cell.key for cell in CELLS}
    assert fault_table.PATH.read_text() == fault_table.render(fault_table.read())


def test_every_fault_strikes_every_operation_or_there_is_a_reason_why_not():
    struck = {(cell.fault, cell.operation) for cell in CELLS}
    wanted = {(fault, operation) for fault, _ in [*struck, *NO_SENSE] for operation in COLUMNS}
    assert struck | NO_SENSE.keys() == wanted
    assert not struck & NO_SENSE.keys()
