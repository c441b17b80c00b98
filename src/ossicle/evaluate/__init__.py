"""Decode test sets, score the hypotheses, and compare runs."""
