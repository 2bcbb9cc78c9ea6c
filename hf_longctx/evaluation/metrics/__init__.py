"""Scores that equal the benchmarks' official ones."""

from hf_longctx.evaluation.metrics.table import JUDGED, METRICS, score, scores

__all__ = ["JUDGED", "METRICS", "score", "scores"]
