"""The games of a cross-play on disk, so that they need not be played again after a kill or with more participants."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_magic.fsync_io import replace_durably

if TYPE_CHECKING:
    from nemo_magic.actors.distributed import World

Rows = Sequence[Mapping[str, Any]]


class GameFolder:
    """Rows by key, a JSON file each: ``<folder>/attacks/<digest>.json`` and ``<folder>/pairs/<digest>.json``.

    Used as a dict is, by all ranks together: rank 0 writes, and every rank knows the same keys.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self._folder = folder
        self._world = world
        keys = set()
        if world.is_main:
            for kind in ("attacks", "pairs"):
                (folder / kind).mkdir(parents=True, exist_ok=True)
            keys = {f"{path.parent.name}/{path.stem}" for path in folder.glob("*/*.json")}
        self._keys = world.broadcast_from_main(keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __getitem__(self, key: str) -> Rows:
        rows: Rows = json.loads(self._path(key).read_text(encoding="utf-8"))
        return rows

    def __setitem__(self, key: str, rows: Rows) -> None:
        if self._world.is_main:
            replace_durably(self._path(key), json.dumps(rows))
        self._world.barrier()
        self._keys.add(key)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"
