"""A run's folder in, ``attacks/`` in it out: labels, figures over steps and phases, a table of strategies."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from nemo_magic.analysis.attacks import AttackRecord, attacks_of
from nemo_magic.analysis.embedding import Embedder
from nemo_magic.analysis.errors import AnalysisError
from nemo_magic.analysis.figures import Labelled, Measures, agreement, by_phase, by_steps, by_strategy, figures
from nemo_magic.analysis.labels import (
    UNKNOWN,
    Labeller,
    LabelRequest,
    StrategyLabel,
    decoded,
    labelling_model,
    of_column,
)
from nemo_magic.analysis.pool import PoolStrategies, find_pool, pool_strategies
from nemo_magic.config.analysis import AnalysisConfig
from nemo_magic.data.errors import DataError
from nemo_magic.data.pools import AttackRow
from nemo_magic.fsync_io import write_durably
from nemo_magic.judge.guards.strategies import StrategyRubric
from nemo_magic.report.conversations import sandbox_of, saved, spread
from nemo_magic.report.records import ATTACK_LABELS_FILE, ATTACK_TABLE_FILE, ATTACKS_DIR, ATTACKS_FILE
from nemo_magic.report.run_folder import RunFolder
from nemo_magic.rollout.response_cache import ResponseCache
from nemo_magic.sandbox.world import SandboxWorld

_ANSWERS, _VECTORS = f"{ATTACKS_DIR}/answers", f"{ATTACKS_DIR}/vectors"


class Analyst:
    """Analyses the attacks of one run, now or again as it grows.

    ``config``: the run's, as a mapping. ``rubric``: what strategies there are outside the sandbox, and how a model is
    asked for them. ``say``: is told of progress.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: AnalysisConfig,
        rubric: StrategyRubric | None,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._rubric = rubric
        self._say = say
        self._world = sandbox_of(config)
        self._path = settings.pool or find_pool(config)
        self._required = settings.pool is not None
        self._pool: PoolStrategies | None = None

    def write(self, run: RunFolder) -> dict[str, Any]:
        """Analyse what the run has saved, and leave the files of docs/attacks.md; returns what ``attacks.json`` says.

        Raises:
            AnalysisError: a server is not there; what it said before is kept.
            DataError: ``analysis.pool`` is no attack pool.
        """
        settings = self._settings
        chosen = saved(run.path, settings.max_conversations)
        attacks = attacks_of(chosen.rows, run.phases.all)
        pool, no_pool = self._read_pool()
        labels, by, check = self._labels(run.path, attacks, pool)
        some = [Labelled(attack, label) for attack, label in zip(attacks, labels, strict=True)]
        embedder = Embedder(settings.embedding, self._journal(run.path, _VECTORS)) if settings.embedding.urls else None
        measures = Measures(
            settings.self_bleu,
            None if pool is None else pool.combinations,
            None if embedder is None else embedder.embed,
            settings.embedding.max_texts,
        )
        strategies = by_strategy(some, None if pool is None else pool.combinations)
        found = {
            "conversations": len(chosen.rows),
            "rule": chosen.rule,
            "attacks": len(attacks),
            "steps": [attacks[0].step, attacks[-1].step] if attacks else None,
            "labels": by,
            "check": check,
            "problems": Counter(label.problem for label in labels if label.problem).most_common(20),
            "pool": no_pool if pool is None else {
                "path": pool.path, "rows": pool.rows, "combinations": len(pool.combinations),
                "unreadable": pool.unreadable,
            },
            "self_bleu": asdict(settings.self_bleu),
            "embedding": None if embedder is None else embedder.name,
            "whole": figures(some, measures),
            "phases": by_phase(some, measures),
            "bins": by_steps(some, settings.bins, measures),
            "strategies": strategies,
        }  # fmt: skip
        folder = run.path / ATTACKS_DIR
        folder.mkdir(exist_ok=True)
        places = (
            {"step": attack.step, "group": attack.group, "sample": sample, "strategy": label.name}
            for attack, label in zip(attacks, labels, strict=True)
            for sample in attack.samples
            if label.name != UNKNOWN
        )
        _write(run.path / ATTACK_LABELS_FILE, "".join(json.dumps(place, ensure_ascii=False) + "\n" for place in places))
        _write(run.path / ATTACK_TABLE_FILE, _csv(strategies))
        _write(run.path / ATTACKS_FILE, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
        return found

    def _labels(
        self, run: Path, attacks: Sequence[AttackRecord], pool: PoolStrategies | None
    ) -> tuple[list[StrategyLabel], str | None, dict[str, Any] | None]:
        """A label for each attack, who gave them (nobody: None), and how far they agree with the pool's, if asked."""
        if self._world is not None:
            labels = [decoded(self._world, attack.messages[-1]) for attack in attacks]
            return labels, "the sandbox, exactly", None
        config = self._settings.labels
        if self._rubric is None or not config.model:
            problem = "nobody was asked (analysis.labels.model)"
            return [StrategyLabel(UNKNOWN, None, problem)] * len(attacks), None, None
        labeller = Labeller(config, self._rubric, labelling_model(config), self._journal(run, _ANSWERS), self._say)
        known = [] if pool is None else spread(pool.readable, config.check) if config.check else []
        asked = [LabelRequest(attack.seed, attack.messages) for attack in attacks]
        labels = labeller.label([*asked, *(LabelRequest(row.seed.text, (row.rewrite,)) for row, _ in known)])
        self._say(f"{len(attacks)} attacks labelled by {labeller.name}; newly asked: {labeller.asked}")
        said = labels[len(attacks) :]
        return labels[: len(attacks)], labeller.name, agreement([parts for _, parts in known], said) if known else None

    def _read_pool(self) -> tuple[PoolStrategies | None, str]:
        """The pool, or why there is none to be new against."""
        if self._path is None:
            return None, "no attack pool is known: give analysis.pool"
        label: Callable[[AttackRow], StrategyLabel | None]
        if self._world is not None:
            label = partial(_decoded_row, self._world)
        elif self._rubric is not None:
            label = partial(_row_of_ids, self._rubric)
        else:
            return None, "strategies are unknown"
        if self._pool is None:
            try:
                self._pool = pool_strategies(self._path, label)
            except DataError as error:
                if self._required:
                    raise
                return None, f"the pool of the warm-up cannot be read: {error}; give analysis.pool"
        if not self._pool.combinations:
            return None, f"{self._path}: no row says its strategy as ids joined by _, or by a strategy's name"
        return self._pool, ""

    def _journal(self, run: Path, folder: str) -> ResponseCache:
        try:
            return ResponseCache(run / folder, 0)
        except ValueError as error:  # a line that nobody wrote
            raise AnalysisError(str(error)) from error


def _decoded_row(world: SandboxWorld, row: AttackRow) -> StrategyLabel:
    return decoded(world, row.rewrite)


def _row_of_ids(rubric: StrategyRubric, row: AttackRow) -> StrategyLabel | None:
    return of_column(rubric, row.strategy)


def _csv(strategies: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    columns = ("strategy", "attacks", "share", "harmful", "asr", "intent_lost", "first_step", "last_step", "in_pool")
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(strategies)
    return out.getvalue()


def _write(path: Path, text: str) -> None:
    """Whole or not at all: a report may be reading it."""
    partial_file = path.with_name(f"{path.name}.partial")
    write_durably(partial_file, text)
    partial_file.replace(path)
