#!/usr/bin/env python3
"""Passes on what ctest prints, and says before its closing summary which tests were skipped and why, and which passed
only when they ran again.

    ctest --repeat until-pass:2 --output-junit FILE … | explain_outcomes.py FILE

A test says why in a line "skipped: REASON" before it exits with 77.
"""

import re
import sys
import xml.etree.ElementTree

FAILED = re.compile(r".* Test +#\d+: (\S+) .*\*\*\*(?!Skipped)")
SUMMARY = re.compile(r"\d+% tests passed")


def skips(cases):
    for case in cases:
        if case.find("skipped") is not None:
            reason = re.search(r"^skipped: (.*)$", case.findtext("system-out", ""), re.MULTILINE | re.IGNORECASE)
            yield case.get("name"), reason.group(1) if reason else "it does not say why"


def unsteady(cases, failed):
    for case in cases:
        if case.get("status") == "run" and case.get("name") in failed:
            yield case.get("name"), failed[case.get("name")]


def main():
    summary = []
    failed = {}
    for line in sys.stdin:
        if result := FAILED.match(line):
            failed[result[1]] = line.partition("***")[2].split()[0]
        if summary or SUMMARY.match(line):
            summary.append(line)
        else:
            print(line, end="", flush=True)
    if summary:
        cases = list(xml.etree.ElementTree.parse(sys.argv[1]).iter("testcase"))
        for name, reason in skips(cases):
            print(f"Skipped: {name}: {reason}")
        for name, result in unsteady(cases, failed):
            print(f"Unsteady: {name}: {result} above, and passed when it ran again: look into it")
        print("\n" + "".join(summary), end="")


if __name__ == "__main__":
    main()
