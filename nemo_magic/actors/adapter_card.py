"""What adapters on disk say about themselves: which base they stand on, and of which shape they are. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_magic.actors.errors import ModelError
from nemo_magic.fsync_io import write_durably
from nemo_magic.model_config import LoraConfig

ADAPTER_CARD = "adapter.json"
"""The file that makes a folder of weights one of adapters."""

_BLOCK = 1 << 20
_TENSORS = ("*.distcp", ".metadata")


@dataclass(frozen=True)
class AdapterCard:
    """``base``: the path of the frozen weights when the adapters were made; ``digest``: of these weights. The others
    are as in ``LoraConfig``, ``targets`` without short names."""

    base: str
    digest: str
    targets: tuple[str, ...]
    adapter_dim: int
    alpha: float

    @classmethod
    def of(cls, base: str, digest: str, lora: LoraConfig) -> AdapterCard:
        """The card of adapters that are configured by ``lora``."""
        return cls(base, digest, lora.targets, lora.adapter_dim, float(lora.alpha))

    @classmethod
    def read(cls, folder: Path) -> AdapterCard | None:
        """The card of the adapters in ``folder``; None where it holds none.

        Raises:
            ModelError: it is no card.
        """
        path = folder / ADAPTER_CARD
        if not path.is_file():
            return None
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path} does not say which adapters these are: {error}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AdapterCard:
        """What ``asdict`` made."""
        return cls(**{**values, "targets": tuple(values["targets"])})

    def write(self, folder: Path) -> None:
        """Write the card to ``folder``, durably."""
        write_durably(folder / ADAPTER_CARD, json.dumps(asdict(self), indent=1) + "\n")

    def differences(self, other: AdapterCard) -> list[str]:
        """Why adapters with the card ``other`` cannot take the place of these, in words; none where they can."""
        differing = []
        if self.digest != other.digest:
            differing.append(f"their base is {other.base} ({other.digest}) and not {self.base} ({self.digest})")
        for name in ("adapter_dim", "alpha", "targets"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                mine, theirs = (", ".join(v) if isinstance(v, tuple) else v for v in (mine, theirs))
                key = "target_modules" if name == "targets" else name
                differing.append(f"they have model.peft.lora_tuning.{key}={theirs} and not {mine}")
        return differing


def base_digest(path: Path) -> str:
    """``weights_digest`` of a base, by its tensors alone: what else lies beside them may change."""
    return weights_digest(path, _TENSORS)


def weights_digest(path: Path, patterns: tuple[str, ...] = ("*",)) -> str:
    """A digest of the weights at ``path``, a folder or a file: names and sizes of its files, and three blocks of each.

    Reading 140 GB would take longer than playing; training moves every weight, so a few blocks tell. Unlike
    ``evaluation.fingerprint``, which reads file times only and takes a HuggingFace folder or a server's path as well,
    this is equal for copies of the same weights. Keys on disk depend on either, so there are two.
    """
    state = hashlib.blake2b(digest_size=16)
    candidates = {path} if path.is_file() else {one for pattern in patterns for one in path.rglob(pattern)}
    for file_path in sorted(one for one in candidates if one.is_file()):
        size = file_path.stat().st_size
        state.update(f"{file_path.relative_to(path)} {size}\n".encode())
        with file_path.open("rb") as file:
            for start in sorted({0, max(0, size // 2 - _BLOCK // 2), max(0, size - _BLOCK)}):
                file.seek(start)
                state.update(file.read(_BLOCK))
    return state.hexdigest()
