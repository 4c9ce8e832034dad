"""From a checkpoint to a published model: converting layouts, filling the model card, pushing to the Hub."""

from transformers import AutoConfig

from modeling_vift import VIFTConfig

# our own class reads a checkpoint's config: the Python files that lie in its folder are not run, nor asked for
AutoConfig.register("vift", VIFTConfig, exist_ok=True)
