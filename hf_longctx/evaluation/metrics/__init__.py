"""Scores that equal the benchmarks' official ones."""

from .table import JUDGED, METRICS, score, scores

__all__ = ["JUDGED", "METRICS", "score", "scores"]
