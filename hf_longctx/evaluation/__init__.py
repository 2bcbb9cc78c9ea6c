"""How far a model really reads: one runner for every task, scores, result files and their report."""

from .catalogue import make_task, read, samples
from .harness import harness_model, reads
from .judge import judge_prompt, quality_score, read_marks
from .metrics import score, scores
from .report.lengths import Written, length_figure
from .report.write import write_report
from .results import result_file, write_results
from .rows import row
from .runner import evaluate
from .sample import Sample
from .tasks import long_output
from .writing import length_baselines, writing_score

__all__ = [
    "Sample",
    "Written",
    "evaluate",
    "harness_model",
    "judge_prompt",
    "length_baselines",
    "length_figure",
    "long_output",
    "make_task",
    "quality_score",
    "read",
    "read_marks",
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
