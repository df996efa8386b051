"""What can go wrong, in sentences for the user, and the exit code that each ends a command with."""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Self

from helix_sim.core.text import shortened


class Exit(IntEnum):
    """The exit code of a command, the same for every verb, and what it means."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "what was asked is done: every curve held, some layout keeps every limit"
    MOVED = 1, "regress: a curve moved; other verbs: no layout does what was asked; nothing else ends with 1"
    BAD_INPUT = 2, "a mistake in a file or an option, or a layout that cannot run"
    OTHER_SWEEP = 3, "sweep: the folder holds another sweep"
    UNFINISHED = 4, "sweep: the folder holds this sweep, unfinished; --resume goes on"
    BUSY = 5, "sweep: another process is writing into the folder"
    DISK_FULL = 6, "the disk is full; of a sweep, what is done is kept"
    CANNOT_WRITE = 7, "a file or a folder cannot be written"
    DAMAGED = 8, "sweep: a file of a finished block is damaged"
    WORKERS_DIED = 9, "sweep: worker processes died again and again"
    BUG = 70, "a fault of helix_sim, with its traceback: please report it"
    INTERRUPTED = 130, "interrupted by Ctrl-C; of a sweep, what is done is kept"
    CLOSED_PIPE = 141, "whoever read the output has closed it, as `| head` does"


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


REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EFBIG, errno.EBUSY, errno.ENXIO, errno.EIO),
)
"""What the system says of a path that cannot be written."""


def exit_of(error: OSError) -> Exit | None:
    """The exit code of a command whose writing failed so; None where the error speaks of no file, which is a bug.

    >>> exit_of(OSError(errno.ENOSPC, "No space left on device")), exit_of(OSError(errno.EBADF, "odd"))
    (<Exit.DISK_FULL: 6>, None)
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exit.DISK_FULL
    if error.errno == errno.EPIPE:
        return Exit.CLOSED_PIPE
    return Exit.CANNOT_WRITE if error.errno in REFUSED else None


def cannot_write(path: object, error: OSError) -> Stopped:
    """A failure to write a path, as one sentence with its exit code; an error that is a bug is raised again."""
    code = exit_of(error)
    if code is None:
        raise error
    why = "the disk is full" if code == Exit.DISK_FULL else f"cannot be written: {(error.strerror or '').lower()}"
    return Stopped(code, f"{shortened(str(path))}: {why}")
