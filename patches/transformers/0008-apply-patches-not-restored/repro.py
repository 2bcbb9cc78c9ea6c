"""Does `apply_patches` put the classes back when something raises inside? Exits 1 if not, 0 if it does."""

import sys

try:
    import transformers.models.llama.modeling_llama as llama
    from transformers.monkey_patching import apply_patches, register_patch_mapping, unregister_patch_mapping
except ImportError as missing:
    print(f"cannot be imported here: {missing}")
    sys.exit(3)


def defect() -> str | None:
    """The class that is left after an exception."""
    stock = llama.LlamaAttention
    register_patch_mapping({"LlamaAttention": type("Other", (stock,), {})})
    try:
        with apply_patches():
            raise KeyError("in a constructor")
    except KeyError:
        left = llama.LlamaAttention
    except ModuleNotFoundError as missing:  # it imports every module of transformers that has a class of this name
        print(f"needs {missing.name}")
        sys.exit(3)
    finally:
        llama.LlamaAttention = stock
        unregister_patch_mapping(["LlamaAttention"])
    return f"LlamaAttention is still {left.__name__}" if left is not stock else None


if __name__ == "__main__":
    sys.exit(defect())
