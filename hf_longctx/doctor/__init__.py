"""What works here and what does not, in lines that can be pasted into a report: `hf-longctx doctor`."""

from .examine import examine
from .diagnosis import Diagnosis

__all__ = ["Diagnosis", "examine"]
