"""Training: recipes, batches, caches of the frozen side, the loop, checkpoints."""

from ossicle.train.loop import train

__all__ = ["train"]
