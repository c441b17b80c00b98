"""Measure hidden states of speech and of text, for training and evaluation."""
