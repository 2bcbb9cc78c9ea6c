"""Does `apply_patches` put the classes back when something raises inside? Exits 1 if not, 0 if it does."""

import sys
from types import ModuleType

import torch

try:
    from transformers.monkey_patching import apply_patches, register_patch_mapping, unregister_patch_mapping
except ImportError as missing:
    print(f"cannot be imported here: {missing}")
    sys.exit(3)

NAME = "ClassOfLedger0008"  # a name is a pattern: that of a real class would leave all that it matches replaced


def defect() -> str | None:
    """The class that is left after an exception."""
    module = ModuleType("transformers.ledger_0008")
    stock = type(NAME, (torch.nn.Module,), {})
    setattr(module, NAME, stock)
    sys.modules[module.__name__] = module
    register_patch_mapping({NAME: type("Other", (stock,), {})})
    try:
        with apply_patches():
            raise KeyError("in a constructor")
    except KeyError:
        left = getattr(module, NAME)
    except ModuleNotFoundError as missing:  # transformers 5.17 imports modules of its own to list their names
        print(f"needs {missing.name}")
        sys.exit(3)
    finally:
        unregister_patch_mapping([NAME])
        del sys.modules[module.__name__]
    return f"{NAME} is still {left.__name__}" if left is not stock else None


if __name__ == "__main__":
    sys.exit(defect())
