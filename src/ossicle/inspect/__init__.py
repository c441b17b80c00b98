"""Measurements of hidden states, used by training and evaluation."""
