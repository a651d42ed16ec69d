"""The commands of README.md, word for word."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commands(topic):
    """The indented lines of the part that begins with **topic.**"""
    part = (ROOT / "README.md").read_text().split(f"\n**{topic}.**")[1].split("\n**")[0]
    return [line.strip().split("  #")[0].rstrip() for line in part.splitlines() if line.startswith("    ")]
