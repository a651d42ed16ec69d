"""Whatever fails on one rank alone: all are told the same, and none is left waiting."""

import errno
import os
import pickle
import signal

import pytest

from rankslice import errors


@pytest.fixture(scope="module", params=[(2, 1), (4, 2)], ids=str)
def failures(request, run_ranks, tmp_path_factory):
    """The failing rank, the folders of its checkpoints, and what all reported."""
    ranks, failing = request.param
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"model_type": "qwen3_5_moe"}')
    (folder / "broken" / "model.safetensors").write_bytes(b"\xff" * 64)
    reports = run_ranks("failures.py", ranks, folder / "broken", folder / "absent", failing)
    return failing, folder, reports


def told(reports, step):
    """What all ranks were told alike."""
    first, *others = (report["told"][step] for report in reports)
    assert all(other == first for other in others)
    return first


def test_a_broken_file_on_one_rank_is_the_same_format_error_on_all(failures):
    failing, folder, reports = failures
    error = told(reports, "broken")
    assert (error["type"], error["code"], error["rank"]) == ("FormatError", 65, failing)
    assert error["file"] == str(folder / "broken" / "model.safetensors") and error["file"] in error["message"]


def test_a_folder_that_one_rank_does_not_have_is_missing_on_all(failures):
    failing, folder, reports = failures
    error = told(reports, "absent")
    assert (error["type"], error["code"], error["rank"]) == ("InputMissingError", 66, failing)
    assert str(folder / "absent") in error["message"]


def test_an_error_of_ours_raised_in_python_keeps_all_that_it_says(failures):
    failing, _, reports = failures
    assert told(reports, "ours") == {
        "type": "VerifyError",
        "message": "expert 3 differs",
        "code": 3,
        "file": "a.safetensors",
        "tensor": "model.experts",
        "rank": failing,
    }


def test_the_ranks_agree_on_the_type_that_stands_for_the_code(failures):
    assert told(failures[2], "plan")["type"] == "UsageError"


def test_any_other_exception_stays_as_it_is_on_its_rank_and_is_told_to_the_others(failures):
    failing, _, reports = failures
    for rank, report in enumerate(reports):
        error = report["told"]["python"]
        if rank == failing:
            assert error == {"type": "KeyError", "message": "'ours alone'"}
        else:
            assert (error["type"], error["rank"], error["code"]) == ("UnexpectedError", failing, 1)
            assert error["message"] == "KeyError: 'ours alone'"


def test_the_ranks_and_their_process_group_work_on_after_failures(failures):
    assert all(report["communicator_works"] and report["group_works"] for report in failures[2])


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=lambda end: end.name)
def test_a_rank_that_dies_or_hangs_ends_the_others_by_the_deadline_of_their_group(start_ranks, end):
    job = start_ranks("broken_group.py", 3)
    job.wait_for(1, "here")
    job.send(1, end)
    others = [job.end_of(rank, timeout=60) for rank in (0, 2)]
    assert {other.result["type"] for other in others} == {"CommError"}
    for other in others:
        assert "broadcast" in other.result["message"] or "of 1000 bytes from rank" in other.result["message"]
        assert other.result["cause"]["type"] in ("RuntimeError", "DistBackendError")
        assert other.result["cause"]["message"] in other.result["message"]
        assert other.result["again"] == other.result["message"], "a broken communicator says the same again"


def with_subclasses(type_):
    return [type_, *(below for subclass in type_.__subclasses__() for below in with_subclasses(subclass))]


EVERY_ERROR = with_subclasses(errors.Error)


@pytest.mark.parametrize("type_", EVERY_ERROR, ids=lambda type_: type_.__name__)
def test_errors_pass_through_pickle_whole(type_):
    error = pickle.loads(pickle.dumps(type_("what happened", 66, "a.safetensors", "model.norm", 3)))
    assert type(error) is type_ and str(error) == "what happened"
    assert (error.code, error.file, error.tensor, error.rank) == (66, "a.safetensors", "model.norm", 3)


def test_errors_of_files_say_what_oserrors_say():
    for error in (errors.IoError("cannot be read", 74, "a"), errors.InputMissingError("is not there", 66, "a")):
        again = pickle.loads(pickle.dumps(error))
        assert (again.filename, again.errno, again.strerror) == (error.filename, error.errno, error.strerror)
        assert error.filename == "a"
    assert error.errno == errno.ENOENT and error.strerror == os.strerror(errno.ENOENT)


def test_python_catches_errors_by_its_own_names_for_them(tmp_path):
    from rankslice import _native

    with pytest.raises(FileNotFoundError) as missing:
        _native.open_checkpoint(str(tmp_path / "absent"), None, "auto", "auto", "auto", None, None, "", False)
    assert isinstance(missing.value, errors.IoError) and isinstance(missing.value, OSError)
    assert missing.value.code == 66 and missing.value.rank is None
    for ours, pythons in [
        (errors.UsageError, ValueError),
        (errors.PlanError, errors.UsageError),
        (errors.IoError, OSError),
        (errors.CommError, RuntimeError),
        (errors.DeviceError, RuntimeError),
        (errors.UnexpectedError, RuntimeError),
    ]:
        assert issubclass(ours, pythons) and issubclass(ours, errors.Error)
