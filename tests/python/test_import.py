"""What happens at `import rankslice`, before anything is loaded."""

import subprocess
import sys


def modules_after(statement):
    program = f"import sys; {statement}; print(*sys.modules)"
    listing = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(listing.stdout.split())


def test_importing_takes_none_of_what_only_some_uses_need():
    """The tensors of torch.distributed and transformers alone take seconds."""
    modules = modules_after("import rankslice")
    assert "rankslice" in modules
    assert not modules & {"torch.distributed.tensor", "transformers", "tqdm"}
