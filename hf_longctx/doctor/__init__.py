"""What works here and what does not, in lines that can be pasted into a report: `hf-longctx doctor`."""

from .diagnosis import Diagnosis
from .examine import examine

__all__ = ["Diagnosis", "examine"]
