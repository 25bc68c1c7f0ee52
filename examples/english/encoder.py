"""Sentence embeddings by all-MiniLM-L6-v2, as its card describes: the mean of the token vectors, at length one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

MAX_TOKENS = 128


class Encoder:
    """The model in ``folder``, in fp32 on the CPU.

    Raises:
        FileNotFoundError: the folder does not hold it.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(
                f"{folder} holds no sentence encoder (model.safetensors): `make english` fetches it"
            )
        # Not at the top: whoever only asks which fields the judge answers needs no transformers.
        from transformers import AutoTokenizer, BertModel

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
        self._one = lru_cache(maxsize=4096)(lambda text: self._encode([text])[0])

    def cosines(self, text: str, others: Sequence[str]) -> list[float]:
        """Cosine of ``text`` with each of ``others``, in [-1, 1]."""
        return [float(value) for value in self._encode(others) @ self._one(text)]

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors of the texts, [texts, hidden]."""
        batch = self._tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)
        vectors = (self._model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(vectors, dim=-1)
