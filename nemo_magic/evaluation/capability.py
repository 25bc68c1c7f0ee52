"""General capability, measured by lm-evaluation-harness: its command lines and its results.

The harness (https://github.com/EleutherAI/lm-evaluation-harness) brings the tasks, the prompts and the scoring. This
module builds its command lines for a served model, and reads the results it writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nemo_magic.config.capability import CapabilityConfig, CapabilityTaskConfig
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.published import published_row
from nemo_magic.formatting import MISSING, percent


@dataclass(frozen=True)
class Capability:
    """One figure of the harness, in 0 to 1. ``stderr``: its own standard error, None where it has none; ``cases``: the
    number of examples; ``shots``: examples in the prompt."""

    name: str
    task: str
    metric: str
    value: float
    stderr: float | None
    cases: int | None
    shots: int | None
    published: float | None


def command_lines(config: CapabilityConfig, max_length: int, output: str) -> list[list[str]]:
    """The arguments of ``lm_eval``, one call for each way of asking; results go to ``output``.

    Raises:
        ValueError: a key that is needed is null, or ``tokenizer`` has no tokenizer.
    """
    if config.url is None:
        raise ValueError("eval.capability.url is null: give the server's base url, http://127.0.0.1:8000/v1")
    if not config.tasks:
        raise ValueError("eval.capability.tasks is empty: name tasks, or take conf/capability/paper.yaml")
    ways: dict[tuple[str, bool, int | None], list[str]] = {}
    for name, task in config.tasks.items():
        if not task.task:
            raise ValueError(f"eval.capability.tasks.{name}.task is empty: give the harness's name of it")
        ways.setdefault((task.how, task.chat_template, task.num_fewshot), []).append(task.task)
    return [_call(config, *way, names, max_length, output) for way, names in ways.items()]


def _call(
    config: CapabilityConfig,
    how: str,
    template: bool,
    shots: int | None,
    names: Sequence[str],
    max_length: int,
    output: str,
) -> list[str]:
    arguments: dict[str, Any] = {"model": config.model, "num_concurrent": config.num_concurrent}
    if how == "chat":
        kind, path = "local-chat-completions", "chat/completions"
    else:
        kind, path = "local-completions", "completions"
        if config.tokenizer is None:
            raise ValueError(
                f"eval.capability.tokenizer is null: {', '.join(names)} (how={how}) need the tokenizer's folder"
            )
        arguments |= {"tokenizer": config.tokenizer, "tokenizer_backend": "huggingface", "max_length": max_length}
        # The harness' clients of servers leave the first token out where its transformers model does not.
        arguments["add_bos_token"] = not template and _adds_bos(config.tokenizer)
    arguments["base_url"] = f"{config.url}/{path}"
    words = ["--model", kind, "--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    words += ["--tasks", ",".join(names), "--batch_size", str(1 if how == "chat" else config.batch_size)]
    words += ["--output_path", output, "--log_samples"]
    if how == "chat" or template:
        words.append("--apply_chat_template")
    for flag in ("limit", "include_path"):
        if (value := getattr(config, flag)) is not None:
            words += [f"--{flag}", str(value)]
    return words if shots is None else [*words, "--num_fewshot", str(shots)]


def _adds_bos(tokenizer: str) -> bool:
    """Whether the tokenizer in this folder puts a token before a text, as Llama's does.

    Raises:
        ValueError: there is no fast tokenizer in it.
    """
    from tokenizers import Tokenizer

    path = Path(tokenizer) / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"eval.capability.tokenizer={tokenizer}: there is no tokenizer.json")
    fast = Tokenizer.from_file(str(path))
    plain, special = (fast.encode("a", add_special_tokens=add).ids for add in (False, True))
    return len(special) > len(plain) and special[-len(plain) :] == plain


def read_capability(
    path: str | Path, tasks: Mapping[str, CapabilityTaskConfig], model: str | None
) -> tuple[list[Capability], list[str]]:
    """The figures of ``tasks`` from the newest results that have them, and notes for the reader.

    ``model``: the paper's figures of the model of this name stand beside, where it has any.

    Raises:
        DataError: there are no results at ``path``, or a task's metric is not in them.
    """
    files = _read_results(Path(path))
    rows, notes, measured = [], [], set[str]()
    for name, task in tasks.items():
        candidates = [results for results in files if task.task in results["results"]]
        if not candidates:
            notes.append(f"capability {name}: not measured, {path} has no results of {task.task}")
            continue
        results = candidates[-1]
        measured.add(task.task)
        figures = results["results"][task.task]
        if not isinstance(figures.get(task.metric), int | float):
            known = ", ".join(key for key, value in figures.items() if "," in key and isinstance(value, int | float))
            raise DataError(
                f"eval.capability.tasks.{name}.metric={task.metric}: {path} has of {task.task}: {known or 'nothing'}"
            )
        metric, _, filter_name = task.metric.partition(",")
        stderr = figures.get(f"{metric}_stderr,{filter_name}")
        shots = results.get("n-shot", {}).get(task.task)
        published = published_row(model).get(task.published or "")
        rows.append(
            Capability(
                name,
                task.task,
                task.metric,
                float(figures[task.metric]),
                float(stderr) if isinstance(stderr, int | float) else None,
                _count_examples(results, task.task),
                shots if isinstance(shots, int) else None,
                published,
            )
        )
        limit = results.get("config", {}).get("limit")
        if limit is not None:
            notes.append(f"capability {name}: of each of its tasks the first {limit:g} cases only")
    used = [results for results in files if measured & results["results"].keys()]
    versions = sorted({str(results.get("lm_eval_version")) for results in used})
    if versions:
        notes.append(f"capability: by lm-evaluation-harness {', '.join(versions)}, from {path}")
    return rows, notes


def capability_table(rows: Sequence[Capability]) -> list[list[str]]:
    """Header and rows, per cent."""
    published = any(row.published is not None for row in rows)
    header = ["task", "metric", "%", "± s.e.", "cases", "shots", *(["published"] if published else [])]
    return [header, *([*_cells(row), *([percent(row.published)] if published else [])] for row in rows)]


def capability_json(rows: Sequence[Capability]) -> list[dict[str, Any]]:
    """All fields of the figures, rates in 0 to 1."""
    return [asdict(row) for row in rows]


def _cells(row: Capability) -> list[str]:
    counts = [MISSING if number is None else str(number) for number in (row.cases, row.shots)]
    return [row.name, f"{row.task} {row.metric.replace(',none', '')}", percent(row.value), percent(row.stderr), *counts]


def _read_results(path: Path) -> list[dict[str, Any]]:
    """The harness's results, oldest first."""
    paths = [path] if path.is_file() else list(path.rglob("results*.json"))
    if not paths:
        raise DataError(f"eval.capability.results={path}: there is no results*.json of lm-evaluation-harness")
    results = []
    for file in paths:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            results.append((float(content["date"]), content))
            if not all(isinstance(figures, dict) for figures in content["results"].values()):
                raise ValueError("its results are no objects")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"eval.capability.results={path}: {file} is no result of lm-evaluation-harness: {error!r}"
            ) from error
    return [content for _, content in sorted(results, key=lambda pair: pair[0])]


def _count_examples(results: Mapping[str, Any], task: str) -> int | None:
    """The number of a task's examples; of a group, its tasks' together."""
    samples, groups = results.get("n-samples", {}), results.get("group_subtasks", {})
    if task in samples:
        return int(samples[task]["effective"])
    counts = [_count_examples(results, name) for name in groups.get(task, [])]
    known = [count for count in counts if count is not None]
    return sum(known) if counts and len(known) == len(counts) else None
