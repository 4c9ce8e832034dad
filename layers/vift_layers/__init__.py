"""Where vision and language meet in a model: estimators, capture, the band rule (arXiv 2606.03871)."""
