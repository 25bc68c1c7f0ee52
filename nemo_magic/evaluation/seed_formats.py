"""Seeds as the files of red-teaming tools. Held to garak 0.17.1, PyRIT 0.14.0 and 1.1.0, and OpenRT 0.0.2."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Sequence

import yaml

from nemo_magic.data.errors import DataError
from nemo_magic.data.tables import DropReport
from nemo_magic.evaluation.example import Example


def representable(examples: Sequence[Example], report: DropReport, format: str) -> list[Example]:
    """The examples that the format can hold, each text once.

    Raises:
        DataError: none is left.
    """
    seen: dict[str, Example] = {}
    for example in examples:
        text = example.turns[-1]
        if len(example.turns) > 1:
            report.drop("a conversation, and seeds are single messages")
        elif text in seen:
            report.drop("a text that came before")
        elif format == "pyrit" and _JINJA_STATEMENT.search(text):
            report.drop("a statement of Jinja, which PyRIT would read")
        else:
            seen[text] = example
    if not seen:
        raise DataError(f"seeds-export: no seed is left to write; {report}")
    return list(seen.values())


def to_garak(examples: Sequence[Example], name: str) -> str:
    """A payload: ``garak/data/payloads/NAME.json`` below XDG_DATA_HOME, for probes that take payloads."""
    payload = {
        "garak_payload_name": name,
        "payload_types": ["Text"],
        "payloads": [example.turns[-1] for example in examples],
    }
    return json.dumps(payload, ensure_ascii=False, indent=1) + "\n"


def to_garak_intents(examples: Sequence[Example], name: str) -> str:
    """Stubs of an intent: ``garak/data/cas/intent_stubs/CODE_NAME.json`` below XDG_DATA_HOME, for intent probes."""
    return json.dumps([example.turns[-1] for example in examples], ensure_ascii=False, indent=1) + "\n"


def to_pyrit(examples: Sequence[Example], name: str) -> str:
    """A seed dataset of objectives, for ``SeedDataset.from_yaml_file``."""
    seeds = [
        {
            "value": _literal(example.turns[-1]),
            "harm_categories": [example.category] if example.category else [],
            "name": example.id,
        }
        for example in examples
    ]
    dataset = {"dataset_name": name, "seed_type": "objective", "seeds": seeds}
    return yaml.safe_dump(dataset, allow_unicode=True, sort_keys=False, width=10**9)


def to_openrt(examples: Sequence[Example], name: str) -> str:
    """The csv file that OpenRT's ``eval.py`` takes as ``--dataset NAME``, from its folder ``data``."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["Goal", "id", "category"])
    table.writerows([example.turns[-1], example.id, example.category] for example in examples)
    return text.getvalue()


FORMATS: dict[str, Callable[[Sequence[Example], str], str]] = {
    "garak": to_garak,
    "garak-intents": to_garak_intents,
    "openrt": to_openrt,
    "pyrit": to_pyrit,
}
"""By ``--format``: examples and a name → the file's text."""

_JINJA_STATEMENT = re.compile(r"\{%[-+\s]*(for|endraw)\b")
"""What cannot be marked as text: it ends the raw block, or has PyRIT leave the whole unrendered."""


def _literal(text: str) -> str:
    """As a Jinja template, which PyRIT takes the values of a file for."""
    return f"{{% raw %}}{text}{{% endraw %}}" if re.search(r"\{[{%#]", text) else text
