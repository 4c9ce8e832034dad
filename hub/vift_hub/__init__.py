"""From a checkpoint to a published model: converting layouts, filling the model card, pushing to the Hub."""
