"""How alike attacks are: self-BLEU of samples of one size, and the mean cosine similarity of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

import numpy as np
import numpy.typing as npt


def self_bleu(samples: Sequence[Sequence[str]], tokenize: str) -> float | None:
    """Mean over samples of the mean over their texts of sentence BLEU-4 against all others of the sample (Zhu et al.,
    arXiv 1802.01886), 0..1: 1 where all are alike. sacrebleu's, with effective order and exponential smoothing.

    It grows with the number of references: samples have to be of one size to be compared.
    """
    from sacrebleu.metrics.bleu import BLEU  # takes a quarter of a second

    bleu = BLEU(effective_order=True, tokenize=tokenize)
    scores = [
        mean(bleu.sentence_score(text, [*sample[:i], *sample[i + 1 :]]).score for i, text in enumerate(sample)) / 100
        for sample in samples
    ]
    return mean(scores) if scores else None


def mean_similarity(vectors: npt.NDArray[np.float32]) -> float | None:
    """Mean cosine similarity of all pairs of ``vectors`` (n, d), none of them zero; None for less than two."""
    n = len(vectors)
    if n < 2:
        return None
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    # The square of the sum has every pair twice, and every vector's own 1.
    return float((np.square(unit.sum(axis=0)).sum() - n) / (n * (n - 1)))
