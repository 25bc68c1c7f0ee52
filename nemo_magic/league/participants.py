"""Who plays in a league and on which seeds. Imports neither torch nor NeMo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_magic.actors.adapter_card import weights_digest
from nemo_magic.config import ConfigError, MagicConfig
from nemo_magic.data.errors import DataError
from nemo_magic.data.pools import read_rewrites
from nemo_magic.data.seeds import SeedSet, evenly_spaced
from nemo_magic.game.episode import Label, Role, Seed
from nemo_magic.game.payoff import NO_REWRITE
from nemo_magic.rollout.conversation import RolloutSpec

if TYPE_CHECKING:
    from nemo_magic.actors.snapshots import Snapshot

REMOTE = "remote"
"""The name of the one participant of a role that a server plays."""

START = "start"
"""The name of a player's first snapshot."""

SHARED = "shared"
"""The name of the one player of self-play."""

_PHASE = "phase-"


@dataclass(frozen=True)
class Participant:
    """An attacker or a defender of a league.

    ``weights``: a folder of weights; None plays as it is (a server, or the bare seeds). ``rewrites``: seed text → its
    rewrites, of an attacker that is a file. ``identity``: what its games depend on; equal for the same weights under
    another name. ``old``: it was there before the last phase of its role. ``report``: what was read and dropped of a
    file.
    """

    name: str
    identity: str
    weights: Path | None = None
    rewrites: Mapping[str, Sequence[str]] | None = None
    old: bool = False
    report: str = ""


@dataclass(frozen=True)
class LeagueSeeds:
    """Held-out seeds as ``(group, seed)``. A sample depends on its seed's group.

    ``per_seed``: attacks by every attacker on each harmful seed. ``attack_benign``: attackers rewrite every benign seed
    too, once; otherwise benign seeds are played as they are only.
    """

    harmful: list[tuple[int, Seed]]
    benign: list[tuple[int, Seed]]
    per_seed: int
    attack_benign: bool = True

    @classmethod
    def of(cls, seeds: SeedSet, num_games: int) -> LeagueSeeds:
        """About ``num_games`` games of a pair on harmful seeds, and at most as many seeds of either label, evenly
        spaced.

        Raises:
            DataError: there is no harmful seed.
        """
        held_out = seeds.test or seeds.validation
        harmful, benign = (evenly_spaced([s for s in held_out if s.label is label], num_games) for label in Label)
        numbered = list(enumerate(harmful + benign))
        return cls(numbered[: len(harmful)], numbered[len(harmful) :], _attacks_per_seed(num_games, len(harmful)))

    @classmethod
    def of_run(cls, seeds: Sequence[tuple[int, Seed]], num_games: int) -> LeagueSeeds:
        """The same of ``(group, seed)`` of a run's test split, whose benign seeds are played as they are.

        Raises:
            DataError: there is no harmful seed.
        """
        harmful, benign = (evenly_spaced([one for one in seeds if one[1].label is label], num_games) for label in Label)
        return cls(harmful, benign, _attacks_per_seed(num_games, len(harmful)), attack_benign=False)

    @property
    def numbered(self) -> list[tuple[int, Seed]]:
        """All seeds, harmful ones first."""
        return self.harmful + self.benign

    @property
    def attacks_per_pair(self) -> int:
        """How many attacks on harmful seeds an attacker makes against every defender."""
        return len(self.harmful) * self.per_seed

    def covered_by(self, attacker: Participant) -> str:
        """How many of the harmful seeds an attacker's table has rewrites of, in words.

        Raises:
            ConfigError: of none.
        """
        rewrites = attacker.rewrites or {}
        count = sum(bool(rewrites.get(seed.text)) for _, seed in self.harmful)
        text = f"--attacker {attacker.name}: its table has rewrites of {count} of the {len(self.harmful)} harmful seeds"
        if not count:
            raise ConfigError(
                f"{text} that are played (data.test_files, game.crossplay.num_seeds): seeds have to be equal"
            )
        return text

    def rollout_specs(self) -> list[RolloutSpec]:
        """What every attacker writes."""
        return [RolloutSpec(seed, group, i) for group, seed in self.harmful for i in range(self.per_seed)] + [
            RolloutSpec(seed, group, 0) for group, seed in self.benign if self.attack_benign
        ]

    def __str__(self) -> str:
        return f"{len(self.harmful)} harmful seeds × {self.per_seed} attacks, {len(self.benign)} benign seeds"


def digest(*parts: Any) -> str:
    """A short name for values that JSON can hold."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


BARE_SEEDS = Participant(NO_REWRITE, digest(NO_REWRITE), old=True)
"""The attacker that shows every seed as it is."""


def attackers(cfg: MagicConfig, run: Path, external: Sequence[str] = ()) -> list[Participant]:
    """The bare seeds, the run's attackers, oldest first, and those of ``external`` (``[NAME=]PATH``).

    Raises:
        ConfigError: two have one name, or a path is neither a folder of weights nor a table of rewrites.
        DataError: a table has no column of seeds or of rewrites.
    """
    participants = [BARE_SEEDS, *_saved_snapshots(cfg, run, Role.ATTACKER), *map(_external, external)]
    names = [one.name for one in participants]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--attacker {name}: there is another attacker of this name, give it one as NAME=PATH")
    return participants


def defenders(cfg: MagicConfig, run: Path) -> list[Participant]:
    """The run's defenders, oldest first.

    Raises:
        ConfigError: the run has no weights on disk.
    """
    return _saved_snapshots(cfg, run, Role.DEFENDER)


def snapshots_of(snapshots: Mapping[str, Sequence[Snapshot]], role: Role) -> list[Participant]:
    """The participants of ``role`` among a run's snapshots (player → its own, oldest first); a server where the role
    has none. They are known by their names only: their weights may change after the run has gone on."""
    own = snapshots.get(SHARED, snapshots.get(role))
    return [Participant(REMOTE, REMOTE)] if own is None else [Participant(s.name, s.name, s.folder) for s in own]


def in_order(names: Sequence[str]) -> list[str]:
    """Names of snapshots in the order of training."""
    return sorted(names, key=lambda name: -1 if name == START else int(name.removeprefix(_PHASE)))


def _attacks_per_seed(num_games: int, num_harmful: int) -> int:
    if not num_harmful:
        raise DataError(
            "cross-play needs harmful test seeds: those of data.test_files, else of data.validation_files, else "
            "data.validation_fraction of data.train_files have none. game.crossplay.enabled=false does without"
        )
    return max(1, round(num_games / num_harmful))


def _saved_snapshots(cfg: MagicConfig, run: Path, role: Role) -> list[Participant]:
    remote = cfg.actors.of(role).remote
    if cfg.actors.of(role).is_remote:
        return [Participant(REMOTE, digest(REMOTE, remote.model, sorted(remote.urls), remote.extra_body))]
    folder = run / "snapshots" / (SHARED if cfg.game.self_play else role)
    # A snapshot that is being written has a name with a dot in front.
    names = in_order([path.parent.name for path in folder.glob("[!.]*/metadata.json")])
    if not names:
        raise ConfigError(f"{folder} holds no weights: {run} is no run of `nemo-magic train`, or it has not begun")
    return [Participant(name, weights_digest(folder / name), folder / name, old=name != names[-1]) for name in names]


def _external(option: str) -> Participant:
    name, _, path_text = option.rpartition("=")
    path = Path(path_text)
    name = name or path.stem
    if (path / "metadata.json").is_file():
        return Participant(name, weights_digest(path), path)
    if not path.is_file() or path.suffix == ".nemo":
        raise ConfigError(
            f"--attacker {option}: give a folder of weights, as `nemo-magic sft` and `train` write them, or a table of "
            "rewrites (jsonl, json, csv, tsv, parquet) with a column of seeds and one of rewrites"
        )
    rewrites, report = read_rewrites(str(path))
    return Participant(name, digest(rewrites), rewrites=rewrites, report=f"{path}: {report}")
