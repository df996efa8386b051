"""The version of helix_sim, which every answer and every file that it writes carries."""

__version__ = "0.1.0"
