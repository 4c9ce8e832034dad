"""Training: `trainer.VIFTTrainer`, modality-pure batches, and the micro-world's recipe."""

from pathlib import Path

from vift_hub.models import carried

RECIPES = carried(Path(__file__).resolve().parent, "recipes", "train/recipes")
