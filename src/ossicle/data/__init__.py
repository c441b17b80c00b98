"""Read manifests and audio, plan batches and collate them."""
