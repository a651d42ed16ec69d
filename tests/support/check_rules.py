#!/usr/bin/env python3
"""Prints which tests cite which rule of the model adapters. Exits 1 when a rule has no test, or a cited one is unknown.

    check_rules.py ROOT [--junit FILE] [--full]   ROOT: the source tree; FILE: what ctest wrote, to say which tests ran;
                                                  --full: every test of a rule, not as many as fit into a line
    check_rules.py --self-test                    checks this checker

A test cites a rule in its name (`Rule39_…`, `Rules26And27_…`, `test_rules40_41_…`), or in a comment or docstring that
stands inside the test or right above it ("rule 39", "rules 9, 13 and 19-22"). Fixtures and helpers cannot cite, nor can
the tests of the Python reference. A rule needs a test that cites no more than eight.
"""

import argparse
import ast
import collections
import io
import pathlib
import re
import sys
import tempfile
import tokenize
import xml.etree.ElementTree

Rule = collections.namedtuple("Rule", "title later")
Test = collections.namedtuple("Test", "file name cited")  # cited: the numbers as the name and the comments have them

TEST_FILES = ("unit/*_test.cpp", "mpi/*_test.cpp", "gpu/*_test.cpp", "*/test_*.py")
OF_THE_REFERENCE = "system/test_reference.py"  # says nothing of the program
WIDTH = 150
LONGEST_NAME = 40
MOST_RULES = 8  # a test of more says little of each

NUMBER = r"(?:5a|\d+)"
LIST = rf"{NUMBER}(?:(?:, and |, | and | to |-|–|And|To|_and_|_){NUMBER})*"
CITATION = re.compile(rf"(?<![A-Za-z])[Rr]ule(?:s ?({LIST})| ?({NUMBER}))")
RANGE = re.compile(rf"({NUMBER})(?:-|–| to |To)({NUMBER})")

CPP_TEST = re.compile(
    r"(?P<above>(?:^//[^\n]*\n)*)^(?:TYPED_)?TEST(?:_[FP])?\(\s*(\w+),\s*(\w+)\)(?P<body>.*?^\}$)",
    re.DOTALL | re.MULTILINE,
)
CPP_COMMENT_OR_STRING = re.compile(
    r'(//[^\n]*|/\*.*?\*/)|R"(\w*)\(.*?\)\2"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])\'', re.DOTALL
)


def read_rules(text):
    """{number: Rule, or None for background}, in order."""
    rules = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            number, _, what = line.partition(": ")
            title, _, later = what.partition("; later: ")
            rules[number] = None if title == "background" else Rule(title, later)
    return rules


def cited_numbers(text, order):
    """The numbers that `text` cites; of ranges, all between the ends by their `order`."""
    for several, one in CITATION.findall(text):
        for match in RANGE.finditer(several):
            if all(end in order for end in match.groups()):
                first, last = map(order.index, match.groups())
                yield from order[first:last]
        yield from re.findall(NUMBER, several or one)


def cpp_tests(text):
    """Yields (name, text that may cite) of every test."""
    for match in CPP_TEST.finditer(text):
        comments = [comment[1] for comment in CPP_COMMENT_OR_STRING.finditer(match["body"]) if comment[1]]
        yield f"{match[2]}.{match[3]}", "\n".join([match[3], match["above"], *comments])


def python_tests(text):
    """Yields (name, text that may cite) of every test."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        while first - 1 in comments and comments[first - 1].line.lstrip().startswith("#"):
            first -= 1
        inside = [comments[line].string for line in range(first, node.end_lineno + 1) if line in comments]
        yield node.name, "\n".join([node.name, ast.get_docstring(node) or "", *inside])


def find_tests(root, order):
    for pattern in TEST_FILES:
        for path in sorted(set((root / "tests").glob(pattern)) - {root / "tests" / OF_THE_REFERENCE}):
            tests_of = cpp_tests if path.suffix == ".cpp" else python_tests
            for name, text in tests_of(path.read_text(encoding="utf-8")):
                cited = set(cited_numbers(text, order))
                if cited:
                    yield Test(path.relative_to(root / "tests"), name, cited)


def ctest_name(file):
    """What ctest calls the runs of a file of tests; those under mpirun have the number of ranks behind it."""
    if file.parts[0] == "downstream":
        return "package.downstream"
    return f"{file.parts[0]}.{file.stem.removeprefix('test_')}"


def ran(junit_file):
    """The names, as `ctest_name` gives them, of all that ran."""
    cases = [
        case
        for case in xml.etree.ElementTree.parse(junit_file).iter("testcase")
        if case.get("status") in ("run", "fail") and case.find("skipped") is None
    ]
    return {re.sub(r"\.\d+$", "", case.get("name")) for case in cases}


def test_list(tests, number, room):
    """`tests`, those that have the rule in their name first, as many as fit."""
    by_name = sorted(tests, key=lambda test: number not in re.findall(NUMBER, test.name))
    names = [f"{test.file.stem}.{test.name.split('.')[-1]}" for test in by_name]
    if room is None:
        return "".join(f"\n    {name}" for name in names)
    names = [name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…" for name in names]
    text = " " + names[0]
    for name in names[1:]:
        if len(text) + len(name) > room - len(":, , …"):
            return text + ", …"
        text += ", " + name
    return text


def table(rules, tests, done, full):
    """Yields the lines: each rule that needs tests, and its tests."""
    width = max(len(rule.title) for rule in rules.values() if rule)
    for number, rule in rules.items():
        if rule is None:
            continue
        citing = [test for test in tests if number in test.cited]
        count = f"{len(citing):2} test{'s' * (len(citing) != 1)}"
        idle = sum(ctest_name(test.file) not in done for test in citing) if done is not None else 0
        line = f"rule {number:>2}  {rule.title:{width}}  {count}"
        line += f", {idle} not run here" if idle else ""
        if citing:
            line += ":" + test_list(citing, number, None if full else WIDTH - len(line))
        yield line if citing else line + ": NONE"
        if rule.later:
            yield f"{'':9}{'':{width}}  later: {rule.later}"


def problems(rules, tests):
    for number, rule in rules.items():
        citing = [test for test in tests if number in test.cited]
        if rule and not citing:
            yield f"rule {number} ({rule.title}) has no test"
        elif rule and all(len(test.cited) > MOST_RULES for test in citing):
            yield f"rule {number} ({rule.title}) has only tests that cite more than {MOST_RULES} rules"
    for test in tests:
        for number in sorted(test.cited - set(rules)):
            yield f"{test.file}: {test.name} cites rule {number}, which does not exist"


def self_test():
    rules = read_rules("# a remark\n1: one\n5: five; later: half of it\n5a: and a half\n6: background\n7: seven\n")
    order = list(rules)
    assert rules["6"] is None and rules["5"] == Rule("five", "half of it"), rules
    for text, expected in {
        "Rule7_Name": "7", "Rules1And5a_Name": "1 5a", "Rules5To7_Name": "5 5a 6 7", "test_rules1_7_name": "1 7",
        "test_rule7_5_bytes": "7", "rule 5a": "5a", "see Rules 1, 5 and 7: 3 bytes": "1 5 7",
        "rules 1-5a, 7": "1 5 5a 7", "no ferrule 7": "", "the rules": "", "rule 99": "99",
    }.items():  # fmt: skip
        found = sorted(set(cited_numbers(text, order)), key=lambda number: (len(number), number))
        assert sorted(found) == sorted(expected.split()), f"{text}: {found}"
    cpp = '// rule 1\nint helper;\n\n// rule 5\nTEST(A, B) {\n  f("// rule 1");  // rule 7\n}\n\n// rule 1\n'
    python = (
        '"""Rule 1."""\nx = 1  # rule 1\n\n# rule 5\n@mark(7)  # rule 7\ndef test_a():\n    """Rule 5a."""\n'
        '    x("# rule 1")\n\n\ndef helper():\n    """Rule 1."""\n'
    )
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for file, text in {"unit/x_test.cpp": cpp, "system/test_y.py": python}.items():
            (root / "tests" / file).parent.mkdir(parents=True)
            (root / "tests" / file).write_text(text, encoding="utf-8")
        tests = list(find_tests(root, order))
    found = {(ctest_name(test.file), test.name, frozenset(test.cited)) for test in tests}
    expected = {("unit.x_test", "A.B", frozenset({"5", "7"})), ("system.y", "test_a", frozenset({"5", "5a", "7"}))}
    assert found == expected, found
    assert list(problems(rules, tests)) == ["rule 1 (one) has no test"], list(problems(rules, tests))
    unknown = [Test(pathlib.Path("unit/z_test.cpp"), "Z", {"1", "99"})]
    assert list(problems(rules, tests + unknown)) == ["unit/z_test.cpp: Z cites rule 99, which does not exist"]
    nine = {str(number): Rule("nine", "") for number in range(1, 10)}
    of_all = Test(pathlib.Path("unit/z_test.cpp"), "Z", set(nine))
    assert len(list(problems(nine, [of_all]))) == 9
    found = list(problems(nine, [of_all, of_all._replace(cited=set(nine) - {"4"})]))
    assert found == ["rule 4 (nine) has only tests that cite more than 8 rules"], found
    lines = list(table(rules, tests, {"unit.x_test"}, False))
    assert len(lines) == 5 and lines[0].endswith("0 tests: NONE") and "later: half of it" in lines[2], lines
    assert "2 tests, 1 not run here: " in lines[1], lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=pathlib.Path)
    parser.add_argument("--junit", metavar="FILE")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    if arguments.root is None:
        parser.error("which source tree?")
    rules = read_rules((arguments.root / "tests/support/rules.txt").read_text(encoding="utf-8"))
    tests = list(find_tests(arguments.root, list(rules)))
    for line in table(rules, tests, ran(arguments.junit) if arguments.junit else None, arguments.full):
        print(line)
    found = list(problems(rules, tests))
    if found:
        sys.exit("\n".join(found))
    print(f"All {sum(rule is not None for rule in rules.values())} rules have tests, {len(tests)} in all.")


if __name__ == "__main__":
    main()
