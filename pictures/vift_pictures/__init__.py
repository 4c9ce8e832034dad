"""The world of pictures."""
