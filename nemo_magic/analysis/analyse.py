"""Reads a run's folder and writes ``attacks/`` in it: labels, figures over steps and phases, a table of strategies."""

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
from nemo_magic.analysis.figures import (
    FigureOptions,
    LabelledAttack,
    agreement,
    by_phase,
    by_steps,
    by_strategy,
    figures,
)
from nemo_magic.analysis.labels import (
    UNKNOWN,
    Labeller,
    LabelRequest,
    StrategyLabel,
    decode_label,
    label_of_column,
    labelling_model,
)
from nemo_magic.analysis.pool import PoolStrategies, find_pool, pool_strategies
from nemo_magic.config.analysis import AnalysisConfig
from nemo_magic.data.errors import DataError
from nemo_magic.data.pools import AttackRow
from nemo_magic.formatting import csv_cell
from nemo_magic.fsync_io import replace_durably
from nemo_magic.judge.guards.strategies import StrategyRubric
from nemo_magic.report.conversations import evenly_spaced, read_conversations, sandbox_of
from nemo_magic.report.records import ATTACK_LABELS_FILE, ATTACK_TABLE_FILE, ATTACKS_DIR, ATTACKS_FILE
from nemo_magic.report.run_folder import RunFolder
from nemo_magic.rollout.response_cache import ResponseCache
from nemo_magic.sandbox.world import SandboxWorld

_ANSWERS, _VECTORS = f"{ATTACKS_DIR}/answers", f"{ATTACKS_DIR}/vectors"


class Analyst:
    """Analyses the attacks of one run, once or again as it grows.

    ``config``: the run's, as a mapping. ``rubric``: outside the sandbox, the strategies and the prompt that has a model
    name them. ``log``: prints a line of progress.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: AnalysisConfig,
        rubric: StrategyRubric | None,
        log: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._rubric = rubric
        self._log = log
        self._world = sandbox_of(config)
        self._path = settings.pool or find_pool(config)
        self._required = settings.pool is not None
        self._pool: PoolStrategies | None = None

    def write(self, run: RunFolder) -> dict[str, Any]:
        """Analyse the saved conversations, write the files of docs/attacks.md and return the content of
        ``attacks.json``.

        Raises:
            AnalysisError: a server does not answer; its answers so far are kept.
            DataError: ``analysis.pool`` is no attack pool.
        """
        settings = self._settings
        sample = read_conversations(run.path, settings.max_conversations)
        attacks = attacks_of(sample.rows, run.phases.all)
        pool, no_pool = self._read_pool()
        labels, labeller, check = self._label(run.path, attacks, pool)
        labelled = list(map(LabelledAttack, attacks, labels))
        embedder = (
            Embedder(settings.embedding, self._open_cache(run.path, _VECTORS)) if settings.embedding.urls else None
        )
        options = FigureOptions(
            settings.self_bleu,
            None if pool is None else pool.combinations,
            None if embedder is None else embedder.embed,
            settings.embedding.max_texts,
        )
        strategies = by_strategy(labelled, None if pool is None else pool.combinations)
        result = {
            "conversations": len(sample.rows),
            "rule": sample.rule,
            "attacks": len(attacks),
            "steps": [attacks[0].step, attacks[-1].step] if attacks else None,
            "labels": labeller,
            "check": check,
            "problems": Counter(label.problem for label in labels if label.problem).most_common(20),
            "pool": no_pool if pool is None else {
                "path": pool.path, "rows": pool.rows, "combinations": len(pool.combinations),
                "unreadable": pool.unreadable,
            },
            "self_bleu": asdict(settings.self_bleu),
            "embedding": None if embedder is None else embedder.name,
            "whole": figures(labelled, options),
            "phases": by_phase(labelled, options),
            "bins": by_steps(labelled, settings.bins, options),
            "strategies": strategies,
        }  # fmt: skip
        folder = run.path / ATTACKS_DIR
        folder.mkdir(exist_ok=True)
        rows = (
            {"step": attack.step, "group": attack.group, "sample": sample, "strategy": label.name}
            for attack, label in zip(attacks, labels, strict=True)
            for sample in attack.samples
            if label.name != UNKNOWN
        )
        replace_durably(
            run.path / ATTACK_LABELS_FILE, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
        replace_durably(run.path / ATTACK_TABLE_FILE, _csv(strategies))
        replace_durably(run.path / ATTACKS_FILE, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        return result

    def _label(
        self, run: Path, attacks: Sequence[AttackRecord], pool: PoolStrategies | None
    ) -> tuple[list[StrategyLabel], str | None, dict[str, Any] | None]:
        """A label for each attack, the labeller's name (None: there is none), and its agreement with the pool, if
        checked."""
        if self._world is not None:
            labels = [decode_label(self._world, attack.messages[-1]) for attack in attacks]
            return labels, "the sandbox, exactly", None
        config = self._settings.labels
        if self._rubric is None or not config.model:
            problem = "nobody was asked (analysis.labels.model)"
            return [StrategyLabel(UNKNOWN, None, problem)] * len(attacks), None, None
        labeller = Labeller(config, self._rubric, labelling_model(config), self._open_cache(run, _ANSWERS), self._log)
        known = [] if pool is None else evenly_spaced(pool.readable, config.check) if config.check else []
        requests = [LabelRequest(attack.seed, attack.messages) for attack in attacks]
        labels = labeller.label([*requests, *(LabelRequest(row.seed.text, (row.rewrite,)) for row, _ in known)])
        self._log(f"{len(attacks)} attacks labelled by {labeller.name}; newly asked: {labeller.new_questions}")
        check = agreement([parts for _, parts in known], labels[len(attacks) :]) if known else None
        return labels[: len(attacks)], labeller.name, check

    def _read_pool(self) -> tuple[PoolStrategies | None, str]:
        """The pool, or the reason why there is none to compare with."""
        if self._path is None:
            return None, "no attack pool is known: give analysis.pool"
        label: Callable[[AttackRow], StrategyLabel | None]
        if self._world is not None:
            label = partial(_decode_row, self._world)
        elif self._rubric is not None:
            label = partial(_label_row, self._rubric)
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

    def _open_cache(self, run: Path, folder: str) -> ResponseCache:
        try:
            return ResponseCache(run / folder, 0)
        except ValueError as error:  # a line is no JSON
            raise AnalysisError(str(error)) from error


def _decode_row(world: SandboxWorld, row: AttackRow) -> StrategyLabel:
    return decode_label(world, row.rewrite)


def _label_row(rubric: StrategyRubric, row: AttackRow) -> StrategyLabel | None:
    return label_of_column(rubric, row.strategy)


def _csv(strategies: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    columns = ("strategy", "attacks", "share", "harmful", "asr", "intent_lost", "first_step", "last_step", "in_pool")
    writer = csv.DictWriter(out, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in row.items()} for row in strategies)
    return out.getvalue()
