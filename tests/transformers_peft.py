"""Whether the installed transformers loads adapters by itself with the installed peft. `PeftModel` needs no leave."""

from __future__ import annotations

import peft
import pytest
import transformers
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

# for `AutoModel.from_pretrained(adapter)`, `model.load_adapter` and what follows from them
needs_transformers_peft = pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    reason=f"transformers {transformers.__version__} loads adapters itself with peft >= {MIN_PEFT_VERSION} only, and "
    f"{peft.__version__} is installed: PeftModel is tested in its place",
)
