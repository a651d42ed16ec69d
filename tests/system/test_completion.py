"""`rankslice completion` and `rankslice man`: made of the commands' own definitions, and taken by the real programs."""

import re
import shutil
import subprocess

import pytest

from program import PROGRAM, expect, run_ok


def complete(line, cwd):
    """What bash offers for the last word of a line: its own splitting into words, and our function."""
    words = re.findall(r"=|[^\s=]+|(?<=\s)$", line) + ([""] if line.endswith(("=", " ")) else [])
    words = [word for i, word in enumerate(words) if word or i == len(words) - 1]
    script = run_ok("completion", "bash").stdout
    shell = (
        f"{script}\nCOMP_WORDS=({' '.join(map(repr, words))}); COMP_CWORD={len(words) - 1}\n"
        "COMP_LINE=$1; COMP_POINT=${#1}\n"
        'function_of=$(complete -p rankslice | sed "s/.*-F \\([^ ]*\\).*/\\1/"); $function_of rankslice\n'
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(["bash", "--norc", "-c", shell, "bash", line], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.split()


def commands():
    listed = run_ok("--help").stdout.split("Subcommands:\n")[1].split("\n\n")[0]
    return re.findall(r"^  ([a-z-]+)", listed, re.MULTILINE)


def documented_options(command):
    lines = run_ok(command, "--help").stdout.splitlines()
    return {
        name for line in lines if line.startswith("  -") for name in re.findall(r"--?[a-z][a-z0-9-]*", line.split()[0])
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "qwen.h5").touch()
    (tmp_path / "qwen folder").mkdir()
    (tmp_path / "other").mkdir()
    return tmp_path


def test_bash_completes_every_command(folder):
    assert set(complete("rankslice ", folder)) == {*commands(), "--help", "--version"}
    assert complete("rankslice ver", folder) == ["verify"]


def test_bash_completes_every_option_of_every_command(folder):
    for command in commands():
        assert set(complete(f"rankslice {command} -", folder)) == documented_options(command), command


def test_bash_completes_values(folder):
    assert complete("rankslice load x --verify ", folder) == ["off", "coverage", "full", "reread"]
    assert complete("rankslice load x --verify=re", folder) == ["reread"]
    assert complete("rankslice load x --verify=", folder) == ["off", "coverage", "full", "reread"]
    assert complete("rankslice completion ", folder) == ["bash", "zsh"]
    assert complete("rankslice bench --steps load,ver", folder) == ["load,verify"]


def test_bash_completes_files_and_folders_where_they_are_meant(folder):
    assert complete("rankslice load qwen.", folder) == ["qwen.h5"]
    assert complete("rankslice load x --report qwen.", folder) == ["qwen.h5"]
    assert complete("rankslice load x --save-shards ", folder) != []
    assert "qwen.h5" not in complete("rankslice load x --save-shards ", folder)
    assert complete("rankslice load x --ep ", folder) == []


def test_bash_offers_options_where_a_value_may_be_left_out(folder):
    assert "--sha256" in complete("rankslice verify x --write-manifest --sha", folder)
    assert complete("rankslice verify x --write-manifest qwen.", folder) == ["qwen.h5"]


def test_bash_completes_in_a_terminal(folder):
    """With readline itself: the tab key, and the line that bash then runs."""
    import os
    import pty
    import select
    import time

    script = folder / "completion.bash"
    script.write_text(run_ok("completion", "bash").stdout)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ.update(PS1="$ ", TERM="dumb")
        os.execvp("bash", ["bash", "--norc", "--noprofile"])
    try:
        os.write(terminal, b"source completion.bash; rankslice() { printf '<%s>' \"$@\"; }\n")
        os.write(terminal, b"rankslice to-\t--export\t=sou\tqwen\\ f\t\n")
        seen, end = b"", time.monotonic() + 20
        while b"<to-hf>" not in seen and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                seen += os.read(terminal, 4096)
        assert b"<to-hf><--export-layout" in seen, seen
        assert b"source>" in seen and b"<qwen folder/>" in seen, seen
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def test_zsh_takes_its_script():
    if not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    script = run_ok("completion", "zsh").stdout
    assert subprocess.run(["zsh", "-n"], input=script, text=True, capture_output=True).stderr == ""


def test_zsh_knows_every_option():
    script = run_ok("completion", "zsh").stdout
    for command in commands():
        part = script.split(f"\n    {command})\n")[1].split("\n      ;;")[0]
        assert set(re.findall(r"'(--?[a-z][a-z0-9-]*)", part)) == documented_options(command), command


@pytest.mark.parametrize("shell", ["fish", None])
def test_other_shells_are_wrong_usage(shell):
    expect(2, "completion", *([shell] if shell else []))


# The manual page ----------------------------------------------------------------------------------------------------


def test_the_manual_names_every_command_option_and_exit_code():
    page = run_ok("man").stdout
    for command in commands():
        part = page.split(f'\n.SS "{command}'.replace("-", "\\-"))[1].split("\n.S")[0].replace("\\-", "-")
        for option in documented_options(command):
            assert f"\\fB{option}\\fR" in part, f"{command} {option}"
    codes = [int(code) for code in re.findall(r"^\.B (\d+)$", page, re.MULTILINE)]
    assert codes == [0, 1, 2, 3, 65, 66, 69, 73, 74, 75, 78, 130, 143]


def test_the_manual_is_shown_without_a_warning(tmp_path):
    if not shutil.which("groff"):
        pytest.skip("groff is not installed")
    page = tmp_path / "rankslice.1"
    page.write_text(run_ok("man").stdout)
    done = subprocess.run(["groff", "-man", "-Tutf8", "-k", "-ww", page], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    for words in ("--metrics-file FILE", "off|coverage|full|reread", "mpirun -n 4 rankslice load tiny --ep 4"):
        assert words in shown, words
    if shutil.which("mandoc"):
        assert subprocess.run(["mandoc", "-T", "lint", "-W", "error", page], capture_output=True).returncode == 0


def test_both_are_data_on_stdout_from_whichever_launcher():
    for arguments in (["man"], ["completion", "bash"]):
        assert run_ok(*arguments).stderr == ""
        assert PROGRAM.name in run_ok(*arguments).stdout
