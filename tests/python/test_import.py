"""What happens at `import rankslice`, before anything is loaded."""

import subprocess
import sys


def modules_after(statement):
    program = f"import sys; {statement}; print(*sys.modules)"
    listing = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(listing.stdout.split())


def test_importing_takes_none_of_what_only_some_uses_need():
    """Launchers look at checkpoints and plans, too, and torch takes seconds."""
    modules = modules_after("import rankslice")
    assert "rankslice" in modules
    assert not modules & {"torch", "transformers", "tqdm"}
