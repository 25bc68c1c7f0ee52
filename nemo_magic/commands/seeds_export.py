"""``nemo-magic seeds-export FILE …``: seeds as red-teaming tools read them. Imports neither torch nor NeMo.

Held to garak 0.17.1, PyRIT 0.14.0 and 1.1.0, and OpenRT 0.0.2.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_magic.data.errors import DataError
from nemo_magic.data.tables import DropReport
from nemo_magic.evaluation.catalogue import BENCHMARKS
from nemo_magic.evaluation.example import Example
from nemo_magic.evaluation.load_examples import load_benchmark
from nemo_magic.fsync_io import write_durably
from nemo_magic.game.episode import Label


def add_parser(commands: Any) -> None:
    """``nemo-magic seeds-export``."""
    about = "write seeds as a red-teaming tool reads them (docs/red_teaming.md)"
    parser = commands.add_parser("seeds-export", help=about, description=about, allow_abbrev=False)
    parser.add_argument("files", metavar="FILE", type=Path, nargs="+", help="seeds: a text and a label a row")
    parser.add_argument("--format", required=True, choices=sorted(FORMATS), help="who is to read them")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="where to write them")
    parser.add_argument(
        "--benchmark",
        metavar="NAME",
        default="seeds",
        choices=sorted(BENCHMARKS),
        help="what the files are copies of, as eval.tasks.<name>.benchmark has it (seeds)",
    )
    parser.add_argument(
        "--label",
        metavar="harmful|benign|all",
        default="harmful",
        choices=[*map(str, Label), "all"],
        help="which of them (harmful: what is worth attacking)",
    )


def run(args: argparse.Namespace) -> int:
    """Raises DataError where nothing is left to write, or a file cannot be read or written."""
    report, kept = DropReport(), list[Example]()
    for path in args.files:
        loaded = load_benchmark(args.benchmark, path, "seeds-export")
        print(f"{path}: {loaded}")
        wanted = [example for example in loaded.examples if args.label == "all" or example.label == args.label]
        report.read += len(loaded.examples)
        report.drop(f"not {args.label}", len(loaded.examples) - len(wanted))
        kept += wanted
    text = FORMATS[args.format](chosen(kept, report, args.format), args.out.stem)
    try:
        write_durably(args.out, text)
    except OSError as error:
        raise DataError(f"seeds-export: --out={args.out} cannot be written: {error}") from error
    print(f"{args.out}: {report}")
    return 0


def chosen(cases: Sequence[Example], report: DropReport, format: str) -> list[Example]:
    """Those that the format can hold, each text once.

    Raises DataError where none is left.
    """
    seen: dict[str, Example] = {}
    for case in cases:
        text = case.turns[-1]
        if len(case.turns) > 1:
            report.drop("a conversation, and seeds are single messages")
        elif text in seen:
            report.drop("a text that came before")
        elif format == "pyrit" and _JINJA_STATEMENT.search(text):
            report.drop("a statement of Jinja, which PyRIT would read")
        else:
            seen[text] = case
    if not seen:
        raise DataError(f"seeds-export: no seed is left to write; {report}")
    return list(seen.values())


def to_garak(cases: Sequence[Example], name: str) -> str:
    """A payload: ``garak/data/payloads/NAME.json`` below XDG_DATA_HOME, for probes that take payloads."""
    payload = {
        "garak_payload_name": name,
        "payload_types": ["Text"],
        "payloads": [case.turns[-1] for case in cases],
    }
    return json.dumps(payload, ensure_ascii=False, indent=1) + "\n"


def to_garak_intents(cases: Sequence[Example], name: str) -> str:
    """Stubs of an intent: ``garak/data/cas/intent_stubs/CODE_NAME.json`` below XDG_DATA_HOME, for intent probes."""
    return json.dumps([case.turns[-1] for case in cases], ensure_ascii=False, indent=1) + "\n"


def to_pyrit(cases: Sequence[Example], name: str) -> str:
    """A seed dataset of objectives, for ``SeedDataset.from_yaml_file``."""
    seeds = [
        {
            "value": _literal(case.turns[-1]),
            "harm_categories": [case.category] if case.category else [],
            "name": case.id,
        }
        for case in cases
    ]
    dataset = {"dataset_name": name, "seed_type": "objective", "seeds": seeds}
    return yaml.safe_dump(dataset, allow_unicode=True, sort_keys=False, width=10**9)


def to_openrt(cases: Sequence[Example], name: str) -> str:
    """The csv file that OpenRT's ``eval.py`` takes as ``--dataset NAME``, from its folder ``data``."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["Goal", "id", "category"])
    table.writerows([case.turns[-1], case.id, case.category] for case in cases)
    return text.getvalue()


FORMATS: dict[str, Callable[[Sequence[Example], str], str]] = {
    "garak": to_garak,
    "garak-intents": to_garak_intents,
    "openrt": to_openrt,
    "pyrit": to_pyrit,
}
"""By ``--format``: cases and a name → the file's text."""

_JINJA_STATEMENT = re.compile(r"\{%[-+\s]*(for|endraw)\b")
"""What cannot be told to be text: it ends the raw block, or has PyRIT leave the whole unrendered."""


def _literal(text: str) -> str:
    """As a Jinja template, which PyRIT takes the values of a file for."""
    return f"{{% raw %}}{text}{{% endraw %}}" if re.search(r"\{[{%#]", text) else text
