"""What can go wrong, in sentences for the user."""

from __future__ import annotations

from helix_sim.core.text import shortened


class Stopped(Exception):
    """A long job that cannot go on, in a sentence for the user; `code` is the command's exit code."""

    def __init__(self, code: int, sentence: str) -> None:
        self.code, self.sentence = code, sentence
        super().__init__(code, sentence)


class SpecError(ValueError):
    """Every problem found in a file or a request, each a sentence, however long the value that it quotes."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = [shortened(problem, 900) for problem in problems]
        super().__init__("\n".join(self.problems))
