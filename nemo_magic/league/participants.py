"""Who plays in a league, on which seeds, and what results with them depend on. Imports neither torch nor NeMo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.data.pools import read_rewrites
from nemo_magic.data.seeds import SeedSet
from nemo_magic.game.episode import Label, Role, Seed
from nemo_magic.game.payoff import NO_REWRITE
from nemo_magic.rollout.conversation import RolloutSpec

REMOTE = "remote"
"""What the one self of a role that a server plays is called."""

START = "start"
"""The name of a player's first self."""

SHARED = "shared"
"""The name of the one player of self-play."""


_PHASE = "phase-"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Participant:
    """Somebody to play.

    ``weights``: a folder of weights; None plays as it is (a server, or nobody's rewrites). ``rewrites``: seed text →
    its rewrites, of an attacker that is a file. ``identity``: what it is, as a digest; the same weights under another
    name have the same one. ``old``: it was there before the last phase of its role.
    """

    name: str
    identity: str
    weights: Path | None = None
    rewrites: Mapping[str, Sequence[str]] | None = None
    old: bool = False


@dataclass(frozen=True)
class LeagueSeeds:
    """Held-out seeds, numbered over both labels; ``per_seed`` attacks by every attacker on each that is harmful."""

    harmful: list[tuple[int, Seed]]
    benign: list[tuple[int, Seed]]
    per_seed: int

    @classmethod
    def of(cls, seeds: SeedSet, wanted: int) -> LeagueSeeds:
        """About ``wanted`` games on harmful seeds and as many seeds at most of either label.

        Raises:
            ValueError: there is no harmful seed.
        """
        held_out = seeds.test or seeds.validation
        harmful, benign = ([seed for seed in held_out if seed.label is label][:wanted] for label in Label)
        if not harmful:
            raise ValueError("cross-play needs harmful test seeds: data.test_files or data.validation_files has none")
        numbered = list(enumerate(harmful + benign))
        return cls(numbered[: len(harmful)], numbered[len(harmful) :], max(1, round(wanted / len(harmful))))

    def jobs(self) -> list[RolloutSpec]:
        return [RolloutSpec(seed, g, i) for g, seed in self.harmful for i in range(self.per_seed)] + [
            RolloutSpec(seed, g, 0) for g, seed in self.benign
        ]

    def __str__(self) -> str:
        return f"{len(self.harmful)} harmful seeds × {self.per_seed} attacks, {len(self.benign)} benign seeds"


def attackers(cfg: MagicConfig, run: Path, external: Sequence[str] = ()) -> list[Participant]:
    """The bare seeds, every attacker that the run kept, oldest first, and those of ``external`` (``[NAME=]PATH``).

    Raises:
        ConfigError: two have one name, or a path is neither a folder of weights nor a table of rewrites.
        DataError: a table has no column of seeds or of rewrites.
    """
    kept = _selves(cfg, run, Role.ATTACKER)
    found = [Participant(NO_REWRITE, digest(NO_REWRITE), old=True), *kept, *(_external(word) for word in external)]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--attacker {name}: there is another attacker of this name, give it one as NAME=PATH")
    return found


def defenders(cfg: MagicConfig, run: Path) -> list[Participant]:
    """Every defender that the run kept, oldest first."""
    return _selves(cfg, run, Role.DEFENDER)


def in_order(names: Sequence[str]) -> list[str]:
    """Names of snapshots in the order of the game."""
    return sorted(names, key=lambda name: -1 if name == START else int(name.removeprefix(_PHASE)))


def weights_of(folder: Path) -> str:
    """What weights a folder holds: names and sizes of its files, and three blocks of each.

    Reading 140 GB would take longer than playing; training moves every weight, so a few blocks tell.
    """
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        found.update(f"{path.relative_to(folder)} {size}\n".encode())
        with path.open("rb") as file:
            for start in sorted({0, max(0, size // 2 - _BLOCK // 2), max(0, size - _BLOCK)}):
                file.seek(start)
                found.update(file.read(_BLOCK))
    return found.hexdigest()


def digest(*parts: Any) -> str:
    """A short name for values that JSON can hold."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _selves(cfg: MagicConfig, run: Path, role: Role) -> list[Participant]:
    remote = cfg.actors.of(role).remote
    if cfg.actors.of(role).is_remote:
        return [Participant(REMOTE, digest(REMOTE, remote.model, sorted(remote.urls), remote.extra_body))]
    kept = run / "snapshots" / (SHARED if cfg.game.self_play else role)
    # One that is being written has a name with a dot in front.
    names = in_order([path.parent.name for path in kept.glob("[!.]*/metadata.json")])
    if not names:
        raise ConfigError(f"{kept} holds no weights: {run} is no run of `nemo-magic train`, or it has not begun")
    return [Participant(name, weights_of(kept / name), kept / name, old=name != names[-1]) for name in names]


def _external(word: str) -> Participant:
    name, _, given = word.rpartition("=")
    path = Path(given)
    name = name or path.stem
    if (path / "metadata.json").is_file():
        return Participant(name, weights_of(path), path)
    if not path.is_file() or path.suffix == ".nemo":
        raise ConfigError(
            f"--attacker {word}: give a folder of weights, as `nemo-magic sft` and `train` write them, or a table of "
            "rewrites (jsonl, json, csv, tsv, parquet) with a column of seeds and one of rewrites"
        )
    rewrites = read_rewrites(str(path))
    return Participant(name, digest(rewrites), rewrites=rewrites)
