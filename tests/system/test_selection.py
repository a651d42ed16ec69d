"""`--include` and `--exclude`: what is selected, under fresh headers, through every command and format."""

import re

import pytest
import safetensors.torch

import reference
import shards
from program import expect, run_ok

STAGE = r"model\.language_model\.layers\.[0-1]\."  # what the first stage of a pipeline loads


def taken(tensors, include="", exclude=""):
    """Rule 25, with Python's own `re`."""

    def matches(pattern, key):
        return re.match(pattern, key) is not None

    return {
        key: value
        for key, value in tensors.items()
        if (not include or matches(include, key)) and not (exclude and matches(exclude, key))
    }


def assert_holds(folder, tensors):
    wrong = reference.differences(tensors, reference.read_folder(folder))
    assert not wrong, "\n".join(wrong)


@pytest.fixture(scope="module")
def stage_store(mini, tmp_path_factory):
    path = tmp_path_factory.mktemp("stage") / "stage.h5"
    run_ok("load", mini, "--include", STAGE, "--store", path, ranks=3)
    return path


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        (STAGE, ""),
        ("", "mtp"),
        ("", r".*visual"),
        (STAGE, r".*\.mlp\.experts\."),
        (r"lm_head|model\.visual", ""),
        ("(?i)MODEL.*NORM", r".*\d\.input"),
    ],
)
def test_exports_what_pythons_re_takes(mini, mini_tensors, include, exclude, tmp_path):
    run_ok("to-hf", mini, tmp_path / "out", "--include", include, "--exclude", exclude, ranks=2)
    assert_holds(tmp_path / "out", taken(mini_tensors, include, exclude))


def test_shards_hold_the_selection(mini, mini_tensors, tmp_path):
    run_ok("load", mini, "--include", STAGE, "--save-shards", tmp_path / "shards", ranks=4)
    mesh = reference.Mesh(1, 4)
    shards.assert_shards(tmp_path / "shards", taken(mini_tensors, STAGE), mesh)
    run_ok("to-hf", tmp_path / "shards", tmp_path / "out", ranks=2)
    assert_holds(tmp_path / "out", taken(mini_tensors, STAGE))


def test_a_store_holds_the_selection_and_opens_again(mini, mini_tensors, stage_store, tmp_path):
    run_ok("verify", stage_store, "--against", mini, "--include", STAGE, ranks=2)
    run_ok("to-hf", stage_store, tmp_path / "out", ranks=2)
    assert_holds(tmp_path / "out", taken(mini_tensors, STAGE))
    side = {path.name for path in mini.iterdir()} - {path.name for path in mini.glob("*.safetensors*")}
    for name in side:
        assert (tmp_path / "out" / name).read_bytes() == (mini / name).read_bytes(), name


def test_the_whole_is_more_than_the_store_of_a_selection(mini, stage_store):
    expect(3, "verify", stage_store, "--against", mini, says="only in")
    expect(3, "verify", mini, "--against", stage_store, says="not in")


def test_fresh_headers_are_those_of_the_safetensors_package(mini, tmp_path):
    report = run_ok("to-hf", mini, tmp_path / "out", "--include", STAGE, "--json").json
    assert report["headers"] == {"origin": "selection", "fresh_because": "some of the tensors were left out"}
    tensors = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "again.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_the_report_lists_what_was_selected(mini, mini_tensors, tmp_path):
    report = run_ok("load", mini, "--include", STAGE, "--exclude", ".*norm", "--json", ranks=2).json
    expected = taken(mini_tensors, STAGE, ".*norm")
    assert report["selection"] == {
        "include": STAGE,
        "exclude": ".*norm",
        "tensors": len(expected),
        "of_tensors": len(mini_tensors),
        "bytes": sum(value.nbytes for value in expected.values()),
    }
    assert report["verify"]["tensors"] == len(expected)
    whole = run_ok("load", mini, "--json").json
    assert "selection" not in whole
    assert whole["headers"] == {"origin": "source"}


def test_plan_and_inspect_speak_of_the_selection(mini, mini_tensors):
    selected = sum(value.nbytes for value in taken(mini_tensors, STAGE).values())
    assert run_ok("inspect", mini, "--include", STAGE, "--json").json["bytes"] == selected
    assert run_ok("plan", mini, "--ranks", 1, "--include", STAGE, "--json").json["bytes"]["read"] == selected


@pytest.mark.parametrize("command", ["load", "verify", "inspect", "to-hf"])
def test_a_selection_that_takes_nothing_is_wrong_usage(mini, command, tmp_path):
    out = [tmp_path / "out"] if command == "to-hf" else []
    expect(2, command, mini, *out, "--include", "norm", says="takes none of")
    assert not (tmp_path / "out").exists()


def test_a_bad_pattern_is_wrong_usage_before_anything_is_opened(tmp_path):
    expect(2, "load", tmp_path / "absent", "--exclude", "ab(", says="exclude 'ab(': at character 3")
