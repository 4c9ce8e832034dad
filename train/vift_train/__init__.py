"""Training: `trainer.VIFTTrainer`, modality-pure batches, and the micro-world's recipe."""
