"""The examples of an evaluation's tasks, read from their files."""

from __future__ import annotations

from pathlib import Path

from nemo_magic.config.eval_config import EvalConfig
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.load_examples import LoadedExamples, load_benchmark


def load_task(cfg: EvalConfig, name: str) -> LoadedExamples:
    """The examples of the task ``name``, which has a file, as the protocol reads it.

    Raises:
        DataError: as ``load_benchmark``, or an attacker would have to rewrite conversations.
    """
    task = cfg.tasks[name]
    assert task.file is not None
    key, answered = f"eval.tasks.{name}.file", task.answers == "file"
    loaded = load_benchmark(cfg.benchmark_name(name), task.file, key, task.limit, answered, cfg.protocol == "magic")
    if task.attacker != "none" and any(len(example.turns) > 1 for example in loaded.examples):
        raise DataError(
            f"eval.tasks.{name}.attacker={task.attacker}: {task.file} holds conversations, and one message is rewritten"
        )
    return loaded


def describe_contents(cfg: EvalConfig) -> list[str]:
    """One line for each task whose file is there: how many of its rows are examples and what is to be known about
    them, or why they cannot be used. No text of theirs is in it."""
    lines = []
    for name, task in cfg.tasks_with_file.items():
        if not Path(task.file or "").is_file():
            continue
        try:
            loaded = load_task(cfg, name)
        except DataError as error:
            lines.append(f"rows      {name}: {error}")
        else:
            lines.append(f"rows      {'; '.join([f'{name}: {loaded.report}', *loaded.notes])}")
    return lines
