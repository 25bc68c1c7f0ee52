"""Weights on disk, known again without reading them."""

from __future__ import annotations

import hashlib
from pathlib import Path


def fingerprint(path: str | None) -> str | None:
    """A digest of the names, sizes and modification times of the files at ``path``, wherever that is; None for no path.

    Hundreds of gigabytes would take minutes to read. Weights copied without their times count as others: what they
    answered is asked for again.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
    """
    if path is None:
        return None
    root = Path(path)
    if not root.exists():
        raise FileNotFoundError(f"weights: {root} does not exist")
    files = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        status = file.stat()
        name = file.name if file == root else file.relative_to(root).as_posix()
        digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()
