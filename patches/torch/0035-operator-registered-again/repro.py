"""Does a dispatch mode get an operator that was registered again? Exits 1 if it gets the freed one, 0 if it does."""

import subprocess
import sys

AGAIN = """
import gc, torch
from torch.utils._python_dispatch import TorchDispatchMode

got = []

class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        got[:] = [operator]
        return operator(*args, **(kwargs or {}))

def register():
    return torch.library.custom_op("ledger::twice", lambda x: 2 * x, mutates_args=(), schema="(Tensor x) -> Tensor")

def called():
    with Mode():
        torch.ops.ledger.twice(x)
    return got.pop() is torch.ops.ledger.twice.default

x = torch.ones(2)
registered = register()
torch.library.impl("ledger::twice", "Meta", torch.empty_like)  # by another library, as of another module
first = torch.ops.ledger.twice.default
assert called()
registered = register()  # as importlib.reload of its module does
print("right" if called() else "the operator of before", flush=True)
del first
gc.collect()
called()
print("alive")
"""


def defect() -> str | None:
    """Which operator a mode gets, and how the process ends once nobody else holds it."""
    done = subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, text=True, check=False)
    if done.stdout.split("\n")[:2] == ["right", "alive"]:
        return None
    if not done.stdout:
        raise RuntimeError(done.stderr)
    end = f"and the process dies of signal {-done.returncode}" if done.returncode < 0 else "which may be freed memory"
    return f"a mode gets {done.stdout.splitlines()[0]}, {end}"


if __name__ == "__main__":
    sys.exit(defect())
