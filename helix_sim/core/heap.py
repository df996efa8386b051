"""The heap of this process: what columns have freed stays for the next ones, where the C library can be told so."""

from __future__ import annotations

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt(3)."""

KEPT = {M_TRIM_THRESHOLD: 2**28, M_MMAP_THRESHOLD: 2**25}
"""Bytes of free heap that stay with the process, and of the largest column that is of the heap: the most that glibc
takes on every system of 64 bits."""


@functools.cache
def keep_freed_columns() -> bool:
    """Keep freed memory in the process from now on; whether the C library can be told so.

    A column of 128 KiB or more is memory that glibc maps for it alone and gives back when it is freed: the next one
    faults every page in anew, which takes longer than most equations. Kept, a page is faulted in once. The process
    holds what it held at its peak. Other C libraries (musl, macOS, Windows) are left as they are.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, _ = libc.mallopt, libc.gnu_get_libc_version
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(parameter, size) == 1 for parameter, size in KEPT.items())
