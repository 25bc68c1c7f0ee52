"""The judged games of a cross-play, one list per pair, and the matrices they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_magic.game.episode import Answer, Label, Role
from nemo_magic.game.metrics import Scored, episode_succeeded
from nemo_magic.game.payoff import CrossPlay
from nemo_magic.league.equilibrium import Outcomes

Games = Sequence[Mapping[str, Any]]
"""A pair's games. ``seed``: its number; ``label``; ``success`` (harmful seeds), ``refused``, ``useful`` (benign seeds):
True, False, or None where no verdict decides; ``loss``: the defender's reward, negated, or None."""

GamesByPair = Mapping[tuple[str, str], Games]
"""(attacker, defender) → their games."""


def game_row(scored: Scored) -> dict[str, Any]:
    """A judged episode as a row of ``Games``."""
    seed, verdict, rewards = scored.episode.seed, scored.verdict, scored.rewards
    harmful = seed.label is Label.HARMFUL
    benign_verdict = verdict if verdict is not None and verdict.error is None and not harmful else None
    return {
        "seed": scored.episode.group,
        "label": str(seed.label),
        "success": episode_succeeded(scored.episode, verdict) if harmful else None,
        "refused": None if benign_verdict is None else _is_yes(benign_verdict.refusal),
        "useful": None if benign_verdict is None else _is_yes(benign_verdict.helpful),
        "loss": -sum(rewards[Role.DEFENDER].values()) if rewards is not None and Role.DEFENDER in rewards else None,
    }


def share_matrix(
    attackers: Sequence[str], defenders: Sequence[str], games: GamesByPair, figure: str
) -> list[list[float | None]]:
    """A row per attacker, a column per defender: the share of a pair's games in which ``figure`` is true, of those in
    which it is known; None where there are none."""
    return [[_share(games[attacker, defender], figure) for defender in defenders] for attacker in attackers]


def cross_play_matrix(
    attackers: Sequence[str], defenders: Sequence[str], games: GamesByPair, num_seeds: int
) -> CrossPlay:
    """ASR of every pair, and the first attacker's over-refusal and usefulness: it plays the bare seeds.

    ``num_seeds``: games of a pair on harmful seeds.

    Raises:
        ValueError: a pair has no judged game on a harmful seed.
    """
    bare = {figure: share_matrix(attackers[:1], defenders, games, figure)[0] for figure in ("refused", "useful")}
    return CrossPlay(
        attackers=list(attackers),
        defenders=list(defenders),
        asr=outcomes(attackers, defenders, games, "success").means().tolist(),
        num_seeds=num_seeds,
        over_refusal=_all_or_none(bare["refused"]),
        useful=_all_or_none(bare["useful"]),
    )


def outcomes(
    attackers: Sequence[str],
    defenders: Sequence[str],
    games: GamesByPair,
    figure: str,
    label_shares: Mapping[str, float] | None = None,
) -> Outcomes:
    """Sums and counts of ``figure`` by pair and seed, with a stratum per label.

    ``label_shares``: label → how much all its games of a pair count together; None counts every game as 1.

    Raises:
        ValueError: a pair has no game in which the figure is known.
    """
    num_seeds = 1 + max(game["seed"] for rows in games.values() for game in rows)
    sums = np.zeros((len(attackers), len(defenders), num_seeds))
    counts, benign = np.zeros_like(sums), np.zeros(num_seeds, dtype=int)
    for i, attacker in enumerate(attackers):
        for j, defender in enumerate(defenders):
            judged = [game for game in games[attacker, defender] if game[figure] is not None]
            if not judged:
                raise ValueError(f"{attacker} against {defender}: no judged game tells {figure}; play more seeds")
            sizes = {label: sum(game["label"] == label for game in judged) for label in label_shares or ()}
            for game in judged:
                weight = 1.0 if label_shares is None else label_shares[game["label"]] / sizes[game["label"]]
                sums[i, j, game["seed"]] += weight * game[figure]
                counts[i, j, game["seed"]] += weight
                benign[game["seed"]] = game["label"] == Label.BENIGN
    known = counts.sum(axis=(0, 1)) > 0  # a figure of harmful seeds says nothing of benign ones
    return Outcomes(sums[:, :, known], counts[:, :, known], benign[known].tolist())


def _share(games: Games, figure: str) -> float | None:
    values = [game[figure] for game in games if game[figure] is not None]
    return sum(values) / len(values) if values else None


def _all_or_none(values: Sequence[float | None]) -> list[float]:
    """``values``; nothing where one is not known."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


def _is_yes(answer: Answer | None) -> bool | None:
    return None if answer in (None, Answer.UNKNOWN) else answer is Answer.YES
