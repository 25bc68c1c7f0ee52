"""What a freed tensor held is given back, gaps included."""

from __future__ import annotations

import psutil
import torch

from nemo_magic.compat import heap


def test_gaps_in_the_heap_are_given_back() -> None:
    # Freed once, a block of this size counts as one for the heap from then on.
    torch.ones(2 << 20)
    kept, gaps = [], []
    for _ in range(100):
        gaps.append(torch.ones(1 << 20))  # 4 MiB
        kept.append(torch.ones(1 << 16))
    gaps.clear()
    before = psutil.Process().memory_info().rss
    heap.give_back()
    assert before - psutil.Process().memory_info().rss > 300 << 20
    assert all(float(one.sum()) == 1 << 16 for one in kept)
