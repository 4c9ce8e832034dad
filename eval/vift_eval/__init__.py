"""Evaluation of VIFT models: the demonstration and the micro-world measurements."""
