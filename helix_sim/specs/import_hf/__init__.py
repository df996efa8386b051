"""Hugging Face config to model spec: a Model's widths, the checkpoint's number formats, and what is refused.

Fields are read by what they mean, not by the model's class. `kinds` has a row for each kind of attention that a config
can say, with the function that reads it; a kind without one is refused by its name, and by the field that says so. What
changes a layer and is not expressed is refused; what is left out is remarked upon. `quantisation` reads the formats.
"""

from helix_sim.specs.import_hf.fields import Config
from helix_sim.specs.import_hf.imported import Imported, import_config, import_file, number_in_name, parse_changes

__all__ = ["Config", "Imported", "import_config", "import_file", "number_in_name", "parse_changes"]
