"""The decoder's part of a Hugging Face config, and its fields by name, checked as they are read."""

from __future__ import annotations

import json
from typing import Any

Config = dict[str, Any]

TEXT_CONFIGS = ("text_config", "llm_config", "language_config")
"""Where a multimodal model keeps its decoder's config."""


def decoder_config(config: Config) -> tuple[Config, str, list[str]]:
    """The decoder's own fields, the path to them, and a remark where there is more than a decoder."""
    for key in TEXT_CONFIGS:
        if isinstance(config.get(key), dict):
            above = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config")
            shared = {name: config[name] for name in above if config.get(name) is not None}
            own = {name: value for name, value in config[key].items() if value is not None or name not in shared}
            return shared | own, f"{key}.", [f"only the decoder of {key} is read; encoders are left out"]
    return config, "", []


def mapping(value: Any) -> Config:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def short(value: Any) -> str:
    """A value as JSON, its end cut off where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 48 else f"{text[:45]}..."


class Fields:
    """Whole numbers of a config by name; what is missing or no number is added to `problems`."""

    def __init__(self, config: Config, prefix: str, problems: list[str]) -> None:
        self.config, self.prefix, self.problems = config, prefix, problems
        self.read: set[str] = set()

    def count(self, *names: str, default: int | None = None) -> int:
        """The first of several spellings of a field; of a number for each layer, the one that all of them have."""
        self.read.update(names)
        for name in names:
            value = self.config.get(name)
            if isinstance(value, list) and value and all(each == value[0] for each in value):
                value = value[0]
            if value is None:
                continue
            if isinstance(value, list):
                self.problems.append(f"{self.prefix}{name} = {short(value)}: differs from layer to layer")
                return 1
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                self.problems.append(f"{self.prefix}{name} = {short(value)} is not a whole number")
                return 1
            return value
        if default is None:
            self.problems.append(f"{self.prefix}{names[0]} is missing")
            return 1
        return default

    def layers(self, name: str) -> set[int] | None:
        """A list of layer numbers; None where the field is absent."""
        self.read.add(name)
        value = self.config.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(v, int) and not isinstance(v, bool) for v in value):
            self.problems.append(f"{self.prefix}{name} = {short(value)} is not a list of layer numbers")
            return set()
        return set(value)
