"""Seed queries of the RL phase: read, labelled, split, and mixed half and half."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import ClassVar, TypeVar

from nemo_magic.config_checks import CheckedConfig, Fraction, PositiveInt
from nemo_magic.data.cells import name_of
from nemo_magic.data.errors import DataError
from nemo_magic.data.streams import read_table
from nemo_magic.data.tables import DropReport, RowNames, Table, read_text
from nemo_magic.game.episode import Label, Seed

T = TypeVar("T")

TEXT_COLUMNS = ("vanilla", "prompt", "question", "query", "seed", "text", "instruction")
LABEL_COLUMNS = ("label", "data_type", "prompt_label", "prompt_harm_label", "harmful", "is_harmful")
ID_COLUMNS = ("id", "uid")
_HARMFUL = {"harmful", "unsafe", "toxic", "1", "1.0", "true", "yes", "vanilla_harmful", "adversarial_harmful"}
_BENIGN = {"benign", "safe", "unharmful", "0", "0.0", "false", "no", "vanilla_benign", "adversarial_benign"}

_LONGEST_NAME = 120
"""Characters of a seed's id. The judge's protocol takes 200, and the game adds group and sample."""


@dataclass
class DataConfig(CheckedConfig):
    """The seeds of the RL phase.

    Files are jsonl, json, csv, tsv or parquet. ``text_column``, ``label_column``: null looks for the usual names
    (docs/data.md). ``harmful_share``: share of harmful seeds in every batch. ``max_chars``: longer seeds are left out.
    Without ``validation_files``, ``validation_fraction`` of the training seeds is held out.
    """

    KEY: ClassVar[str] = "data"

    train_files: list[str] = field(default_factory=list)
    validation_files: list[str] = field(default_factory=list)
    test_files: list[str] = field(default_factory=list)
    text_column: str | None = None
    label_column: str | None = None
    harmful_share: Fraction = 0.5
    max_chars: PositiveInt = 32_000
    validation_fraction: Fraction = 0.02


@dataclass(frozen=True)
class SeedSet:
    """Disjoint splits, every seed under a name of its own, and the count of rows that were left out."""

    train: list[Seed]
    validation: list[Seed]
    test: list[Seed]
    report: DropReport


def load_seeds(config: DataConfig) -> SeedSet:
    """Read all splits. A text is in one split only: test before validation before train, so that no held-out seed is
    trained on.

    Raises:
        DataError: a file is missing or lacks a column, or no seed of a needed label is left.
    """
    if not config.train_files:
        raise DataError("data.train_files is empty: name at least one file of seed queries")
    reader = _SeedReader(config)
    test = reader.split("test_files", config.test_files)
    validation = reader.split("validation_files", config.validation_files)
    train = reader.split("train_files", config.train_files)
    if not config.validation_files:
        # Evenly spaced over each label: the same seeds whatever else is configured.
        validation = [seed for label in Label for seed in _share(train, label, config.validation_fraction)]
        held_out = {seed.text for seed in validation}
        train = [seed for seed in train if seed.text not in held_out]
    if not validation:
        raise DataError("no seed is held out: give data.validation_files or a larger data.validation_fraction")
    return SeedSet(train, validation, test, reader.report)


class SeedSampler:
    """Batches of seeds as a pure function of the step: a resumed run needs its step only.

    Each label goes through its seeds epoch by epoch, in a new random order each; none is skipped or repeated within an
    epoch.
    """

    def __init__(self, seeds: Sequence[Seed], batch_size: int, harmful_share: float, seed: int) -> None:
        harmful = round(batch_size * harmful_share)
        self._seed = seed
        self._counts = {Label.HARMFUL: harmful, Label.BENIGN: batch_size - harmful}
        self._pools = {label: [s for s in seeds if s.label is label] for label in Label}
        for label, count in self._counts.items():
            if count and not self._pools[label]:
                raise DataError(
                    f"data.harmful_share={harmful_share} wants {count} {label} seeds a batch, data.train_files has none"
                )

    def batch(self, step: int) -> list[Seed]:
        """The ``batch_size`` seeds of ``step`` (from 0), labels interleaved."""
        batch = [seed for label in Label for seed in self._of_label(label, step)]
        random.Random(f"{self._seed}/batch/{step}").shuffle(batch)
        return batch

    def more(self, step: int, number: int, count: int) -> list[Seed]:
        """``count`` further seeds of ``step``, in its refill ``number``: drawn with the batch's share of each label,
        from all seeds."""
        draw = random.Random(f"{self._seed}/refill/{step}/{number}")
        labels = draw.choices(list(self._counts), weights=list(self._counts.values()), k=count)
        return [draw.choice(self._pools[label]) for label in labels]

    def _of_label(self, label: Label, step: int) -> list[Seed]:
        count, pool = self._counts[label], self._pools[label]
        seeds = []
        order: list[int] = []
        order_epoch = -1
        for index in range(step * count, (step + 1) * count):
            epoch, position = divmod(index, len(pool))
            if epoch != order_epoch:
                order = list(range(len(pool)))
                random.Random(f"{self._seed}/{label}/{epoch}").shuffle(order)
                order_epoch = epoch
            seeds.append(pool[order[position]])
        return seeds


def interleaved(seeds: Sequence[Seed]) -> list[Seed]:
    """The same seeds with alternating labels for as long as there are both: any head of the list is mixed."""
    pools = [[seed for seed in seeds if seed.label is label] for label in Label]
    return [seed for pair in zip_longest(*pools) for seed in pair if seed is not None]


class EpochSampler:
    """Row numbers of supervised batches as a pure function of the step."""

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        if rows < 1:
            raise DataError("there is no row to learn from")
        self._rows, self._batch_size, self._seed = rows, batch_size, seed
        self._epoch, self._order = -1, list[int]()

    def batch(self, step: int) -> list[int]:
        """The row numbers of ``step`` (from 0)."""
        return [self._at(i) for i in range(step * self._batch_size, (step + 1) * self._batch_size)]

    def _at(self, index: int) -> int:
        epoch, position = divmod(index, self._rows)
        if epoch != self._epoch:
            self._order = list(range(self._rows))
            random.Random(f"{self._seed}/rows/{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order[position]


def read_label(value: object) -> Label | None:
    """A label column's cell, or None for a value that means neither."""
    word = name_of(value).lower()
    if word in _HARMFUL:
        return Label.HARMFUL
    return Label.BENIGN if word in _BENIGN else None


class _SeedReader:
    """Reads splits one after another: a text of an earlier one is in no later one."""

    def __init__(self, config: DataConfig) -> None:
        self.report = DropReport()
        self._config, self._texts, self._names, self._files = config, set[str](), RowNames(), 0

    def split(self, key: str, paths: Sequence[str]) -> list[Seed]:
        """The seeds of all files of ``data.<key>``."""
        seeds = [seed for path in paths for seed in self._seeds_of(read_table(path, self.report, f"data.{key}"))]
        if paths and not seeds:
            raise DataError(f"data.{key}: no row of {', '.join(paths)} can be used; {self.report}")
        return seeds

    def _seeds_of(self, table: Table) -> Iterator[Seed]:
        config, report = self._config, self.report
        text_column = table.column("query text", TEXT_COLUMNS, config.text_column, "data.text_column")
        label_column = table.column("label", LABEL_COLUMNS, config.label_column, "data.label_column")
        id_column = table.column("id", ID_COLUMNS) if table.has(ID_COLUMNS) else None
        self._files += 1
        for number, row in enumerate(table.rows):
            text = read_text(row, text_column, report)
            if text is None:
                continue
            label = read_label(row.get(label_column))
            if label is None:
                report.drop(f"label {name_of(row.get(label_column))[:40]!r} means neither harmful nor benign")
            elif len(text) > config.max_chars:
                report.drop(f"longer than data.max_chars={config.max_chars}")
            elif text in self._texts:
                report.drop("duplicate text")
            else:
                self._texts.add(text)
                own = name_of(row.get(id_column)) if id_column else ""
                # Two files may have one stem, and one row's number may be another row's id.
                name = f"{table.path.stem}/{own or number}"[:_LONGEST_NAME]
                yield Seed(self._names.of(name, f"{self._files}.{number}", report), text, label)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """At most ``count`` of ``items``, in order: a file may be sorted by category."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def _share(seeds: Sequence[Seed], label: Label, fraction: float) -> list[Seed]:
    """``fraction`` of the seeds of ``label``, and of two or more at least one."""
    pool = [seed for seed in seeds if seed.label is label]
    return evenly_spaced(pool, max(round(len(pool) * fraction), min(1, len(pool) - 1)))
