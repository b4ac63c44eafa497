"""The C library's allocator of memory."""

import ctypes
import sys


def keep_freed_memory() -> None:
    """Make glibc keep what is freed, as a GPU's allocator does.

    Otherwise large blocks go back to the system, or not, depending on the sizes freed before: on two cores the same plain
    picture of SD1.5 took 18 or 22 seconds, and takes 13 so.
    """
    if sys.platform == "linux":
        for parameter, value in ((-4, 0), (-1, -1)):  # M_MMAP_MAX, M_TRIM_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, value)
