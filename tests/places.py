"""Paths that several tests use."""

from pathlib import Path

from ossicle_lab.models import weights

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
"""Recordings, texts and fixtures that are not part of the repository; tests skip without them."""
ENCODER, LLM = Path(weights("encoder")), Path(weights("llm"))
CORE_RECIPES = ROOT / "src/ossicle/recipes"
LAB_RECIPES = ROOT / "lab/src/ossicle_lab/recipes"
