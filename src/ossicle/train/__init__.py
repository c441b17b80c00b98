"""Train a projector: recipes, batches, caches of the frozen models, the loop and checkpoints."""

from ossicle.train.loop import train

__all__ = ["train"]
