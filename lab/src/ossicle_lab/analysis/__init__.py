"""Analyse a trained model: alignment by layer, probes and figures."""
