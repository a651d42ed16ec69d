#!/usr/bin/env python3
"""Passes on what ctest prints, and says before its closing summary which tests were skipped and why.

    ctest --output-junit FILE … | explain_skips.py FILE

A test says why in a line "skipped: REASON" before it exits with 77.
"""

import re
import sys
import xml.etree.ElementTree

SUMMARY = re.compile(r"\d+% tests passed")


def skips(junit_file):
    for case in xml.etree.ElementTree.parse(junit_file).iter("testcase"):
        if case.find("skipped") is not None:
            reason = re.search(r"^skipped: (.*)$", case.findtext("system-out", ""), re.MULTILINE | re.IGNORECASE)
            yield case.get("name"), reason.group(1) if reason else "it does not say why"


def main():
    summary = []
    for line in sys.stdin:
        if summary or SUMMARY.match(line):
            summary.append(line)
        else:
            print(line, end="", flush=True)
    if summary:
        for name, reason in skips(sys.argv[1]):
            print(f"Skipped: {name}: {reason}")
        print("\n" + "".join(summary), end="")


if __name__ == "__main__":
    main()
