"""A package of its own, since some distributions install a `tests` package that would hide a plain folder."""
