"""The commands of README.md, word for word."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def commands(topic):
    """The indented lines of the part that begins with **topic.**"""
    part = (ROOT / "README.md").read_text().split(f"\n**{topic}.**")[1].split("\n**")[0]
    return [line.strip().split("  #")[0].rstrip() for line in part.splitlines() if line.startswith("    ")]


def mpirun_commands():
    """All lines that begin with mpirun, wherever they stand."""
    lines = [line.strip().removeprefix("$ ") for line in (ROOT / "README.md").read_text().splitlines()]
    return [line.split("  #")[0].rstrip() for line in lines if line.startswith("mpirun -n ")]
