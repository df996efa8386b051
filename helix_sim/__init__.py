"""helix_sim: how fast a model decodes, sharded every way a rack allows."""

__version__ = "0.1.0"
