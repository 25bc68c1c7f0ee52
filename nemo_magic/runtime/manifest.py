"""Files that are durable and whole, or known not to be: sizes, checksums, and the seal over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_magic.fsync_io import sync_file, sync_folder, write_durably
from nemo_magic.runtime.checkpoint_paths import COMMITTED

CHECKSUMS = "checksums.json"

Checksums = dict[str, tuple[int, str]]
"""Path within a folder → (bytes, BLAKE2b-128 in hex)."""


def checksums_of(root: Path, paths: Iterable[Path]) -> Checksums:
    """Sizes and checksums of files below ``root``."""
    return {str(path.relative_to(root)): (path.stat().st_size, _digest_of(path)) for path in paths}


def write_manifest(root: Path, sums: Checksums, facts: Mapping[str, Any]) -> None:
    """Write down ``sums`` and those of every other file below ``root``, then the seal, which holds ``facts`` too."""
    rest = [path for path in root.rglob("*") if path.is_file() and str(path.relative_to(root)) not in sums]
    for path in rest:
        sync_file(path)
    text = json.dumps(dict(sorted((sums | checksums_of(root, rest)).items())), indent=0)
    write_durably(root / CHECKSUMS, text)
    write_durably(root / COMMITTED, json.dumps({**facts, "checksums": _digest(text.encode())}))
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        sync_folder(folder)


def find_corruption(root: Path, share: slice = slice(None)) -> list[str]:
    """What is wrong with the sealed files below ``root``; ``share`` picks some of them, so that ranks can share."""
    try:
        text = (root / CHECKSUMS).read_text(encoding="utf-8")
        if json.loads((root / COMMITTED).read_text(encoding="utf-8"))["checksums"] != _digest(text.encode()):
            return [f"{CHECKSUMS} is not the one that was sealed"]
        entries: Sequence[tuple[str, Any]] = sorted(json.loads(text).items())[share]
        return [problem for name, (size, digest) in entries for problem in _wrong(root / name, name, size, digest)]
    except (OSError, ValueError, KeyError) as error:
        return [f"{type(error).__name__}: {error}"]


def _wrong(path: Path, name: str, size: int, digest: str) -> list[str]:
    if not path.is_file():
        return [f"{name} is missing"]
    if path.stat().st_size != size:
        return [f"{name} has {path.stat().st_size} of {size} bytes"]
    return [] if _digest_of(path) == digest else [f"{name} does not match its checksum"]


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=16)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
