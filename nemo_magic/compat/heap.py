"""The C library's heap, which a tensor's memory comes from on a CPU."""

from __future__ import annotations

import ctypes

_WORTH_GIVING = 256 << 20


class _Mallinfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``; ``fordblks``: bytes that are free and kept."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks"),
            "keepcost",
        )
    ]


def give_back() -> None:
    """Give free memory in the heap back to the system, where it is 256 MiB or more; with glibc from 2.33 on.

    By itself glibc keeps blocks up to 32 MiB. torch asks for aligned memory, and the gap that an aligned block leaves
    is too small for the next of its size: after some layers nearly half of the heap is gaps.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2"):
        return
    library.mallinfo2.restype = _Mallinfo
    if library.mallinfo2().fordblks >= _WORTH_GIVING:
        library.malloc_trim(0)
