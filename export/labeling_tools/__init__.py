"""A served model in labelling tools, each through its own SDK."""
