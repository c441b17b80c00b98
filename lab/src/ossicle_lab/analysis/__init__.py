"""Looking inside a trained model: alignment by layer, probes, plots."""
