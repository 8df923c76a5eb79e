"""The C library's allocator, told not to give back every large activation (see FACTS: half of the cost of small networks on CPU).

By default glibc maps each block above a threshold and unmaps it when freed, so that every layer's output is page-faulted anew.
A program may decide that for itself, an import must not: `tune` is called when a network is built.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def tune() -> bool:
    """Keep freed memory for the next layer; True where the C library took it (glibc on Linux only)."""
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) and mallopt(M_TOP_PAD, 64 * 2**20))
