#!/usr/bin/env python3
"""Checks that the layers of the source tree point one way, and that foreign interfaces stay in their places.

    check_include_arrows.py ROOT          checks a source tree
    check_include_arrows.py --self-test   checks this checker

What is wrong is printed as FILE:LINE: what, and then it exits with 1.
"""

import pathlib
import re
import sys
import tempfile

# Each folder of src/ and the folders that it may include. Anyone may include public headers and its own folder, too.
ARROWS = {
    "core": set(),
    "device": {"core"},
    "io": {"core"},
    "comm": {"device", "core"},
    "model": {"core"},
    "format": {"io", "core"},
    "transform": {"io", "core"},
    "plan": {"model", "core"},
    "state": {"plan", "core"},
    "verify": {"state", "comm", "transform", "core"},
    "synth": {"format", "model", "io", "core"},
}
TOP = "src"  # stands for the files right in src/: load.cpp, store.cpp, to_hf.cpp and what they share
ARROWS[TOP] = set(ARROWS) - {"synth"}
ARROWS["facts"] = set(ARROWS) - {"synth"}
ARROWS["cli"] = ARROWS["python"] = set(ARROWS)

# Foreign headers and names, and the files that may have them. Names are looked for outside comments and strings.
FOREIGN_HEADERS = [
    (r"mpi\.h", r"src/comm/mpi[^/]*|src/cli/main\.cpp|include/rankslice/mpi\.hpp"),
    (r"hdf5(_hl)?\.h|H5[A-Za-z]+\.h", r"src/format/hdf5[^/]*"),
    (r"(ATen|c10|torch)/.*", r"src/state/torch[^/]*|include/rankslice/torch\.hpp"),
    (r"cuda.*\.h|nccl\.h", r"src/\w+/(cuda|nccl)[^/]*"),
]
FOREIGN_NAMES = [
    (r"MPI_COMM_WORLD|MPI_Init(_thread)?|MPI_Finalize", r"src/cli/main\.cpp"),
    (r"(secure_)?getenv|environ", r"src/cli/[^/]*"),
]
STANDARD_HEADER = re.compile(r"[a-z_]+")  # of C++
SOURCES = {".cpp", ".hpp", ".cu"}
SOURCE_LINES = 500

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[">]')
COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)


def folder_of(path):
    """The folder in src/ of a path relative to src/."""
    return path.split("/")[0] if "/" in path else TOP


def include_problem(file, bracket, path):
    for header, places in FOREIGN_HEADERS:
        if re.fullmatch(header, path) and not re.fullmatch(places, file):
            return f"<{path}> belongs into {places}"
    foreign = any(re.fullmatch(header, path) for header, _ in FOREIGN_HEADERS)
    if bracket == "<" and file.startswith("include/") and not foreign and not STANDARD_HEADER.fullmatch(path):
        return f"<{path}>: those who include public headers need not have it"
    if bracket == "<" or path.startswith("rankslice/"):
        return None
    if file.startswith("include/"):
        return f'a public header includes "{path}", which is not public'
    here, there = folder_of(file.removeprefix("src/")), folder_of(path)
    if here not in ARROWS:
        return f"{here} is not in the list of arrows"
    return None if there in ARROWS[here] | {here} else f'"{path}": no arrow leads from {here} to {there}'


def name_problems(file, text):
    blanked = COMMENT_OR_STRING.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)
    for names, places in FOREIGN_NAMES:
        if re.fullmatch(places, file):
            continue
        for match in re.finditer(rf"\b({names})\b", blanked):
            yield blanked.count("\n", 0, match.start()) + 1, f"{match.group()} belongs into {places}"


def problems(root):
    """Yields (file, line, what is wrong) for the tree below `root`."""
    for top in ("src", "include", "tests"):
        for path in sorted(p for p in (root / top).rglob("*") if p.suffix in SOURCES):
            file = path.relative_to(root).as_posix()
            text = path.read_text(encoding="utf-8")
            lines = text.splitlines()
            if len(lines) >= SOURCE_LINES:
                yield file, SOURCE_LINES, f"{len(lines)} lines, {SOURCE_LINES} or more"
            if top == "tests":
                continue
            for number, line in enumerate(lines, 1):
                include = INCLUDE.match(line)
                problem = include and include_problem(file, *include.groups())
                if problem:
                    yield file, number, problem
            for number, problem in name_problems(file, text):
                yield file, number, problem


def self_test():
    """One good tree, and one with a violation of each kind, each found in its line and nothing else."""
    good = {
        "include/rankslice/a.hpp": '#include <map>\n#include "rankslice/b.hpp"\n',
        "include/rankslice/mpi.hpp": "#include <mpi.h>\n",
        "src/core/x.cpp": '#include "core/x.hpp"\n#include "rankslice/a.hpp"\n',
        "src/load.cpp": '#include "verify/x.hpp"\n#include "plan/plan.hpp"\n#include "reader.hpp"\n',
        "src/cli/main.cpp": '#include "synth/x.hpp"\nvoid start() { MPI_Init(nullptr, nullptr); std::getenv("A"); }\n',
        "src/format/hdf5_calls.cpp": "#include <hdf5.h>\n",
        "src/comm/world.cpp": '// MPI_COMM_WORLD\n/* MPI_Init\n */ auto a = "MPI_Init"; int my_getenv;\n',
    }
    bad = {
        "include/rankslice/bad.hpp": ('#include "core/x.hpp"\n', 1),
        "include/rankslice/json.hpp": ("#include <nlohmann/json.hpp>\n", 1),
        "src/core/up.cpp": ('\n#include "io/file.hpp"\n', 2),
        "src/synth/sideways.cpp": ('#include "plan/plan.hpp"\n', 1),
        "src/to_hf.cpp": ('#include "cli/options.hpp"\n', 1),
        "src/unknown/x.cpp": ('#include "core/x.hpp"\n', 1),
        "src/io/bare.cpp": ('#include "file.hpp"\n', 1),
        "src/plan/mpi.cpp": ("#include <mpi.h>\n", 1),
        "src/device/kernels.cu": ("#include <cuda_runtime.h>\n", 1),
        "src/verify/h5.cpp": ('#include "hdf5.h"\n', 1),
        "src/state/tensor.cpp": ("#include <ATen/core/Tensor.h>\n", 1),
        "src/comm/mpi_world.cpp": ("/*\n*/ auto w = MPI_COMM_WORLD;\n", 2),
        "src/io/environment.cpp": ('auto e = std::getenv("HOME");\n', 1),
        "src/model/long.cpp": ("\n" * SOURCE_LINES, SOURCE_LINES),
    }
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)

        def write(file, text):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text, encoding="utf-8")

        for file, text in good.items():
            write(file, text)
        assert not list(problems(root)), list(problems(root))
        for file, (text, _) in bad.items():
            write(file, text)
        found = sorted((file, line) for file, line, _ in problems(root))
        expected = sorted((file, line) for file, (_, line) in bad.items())
        assert found == expected, f"found {found}, expected {expected}"


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    found = [f"{file}:{line}: {problem}" for file, line, problem in problems(pathlib.Path(sys.argv[1]))]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
