"""How far a model really reads: one runner for every task, scores, result files and their report."""

from .catalogue import make_task, read, samples
from .harness import harness_model, reads
from .metrics import score, scores
from .report.write import write_report
from .results import result_file, write_results
from .rows import row
from .runner import evaluate
from .sample import Sample
from .tasks import long_output
from .writing import writing_score

__all__ = [
    "Sample",
    "evaluate",
    "harness_model",
    "long_output",
    "make_task",
    "read",
    "reads",
    "result_file",
    "row",
    "samples",
    "score",
    "scores",
    "write_report",
    "write_results",
    "writing_score",
]
