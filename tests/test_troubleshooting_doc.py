"""docs/troubleshooting.md sends people to keys, metrics, commands and settings; each of them exists under that name."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_magic.cli import main
from nemo_magic.config.schema import MagicConfig

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("| ").split(" | ")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| you see")
]
QUOTED = re.findall(r"`([^`\n]+)`", TEXT)
METRICS = set(re.findall(r"`([^`]+)`", (ROOT / "docs" / "metrics.md").read_text("utf-8")))
NOT_OURS = {"chat_template", "eos_token", "make_vocab_size_divisible_by"}


def keys(kind: type, path: str = "") -> Iterator[str]:
    """Every key of the schema, dotted."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = f"{path}{field.name}"
        yield name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys(hints[field.name], f"{name}.")
        elif "part_of" in field.metadata:
            yield from keys(field.metadata["part_of"], f"{name}.")


KEYS = set(keys(MagicConfig))


def is_key(name: str) -> bool:
    """Also below a part of the configuration that is the same for both roles (``length_params.max_length``)."""
    name = name.replace("<role>", "defender")
    return any(key == name or key.endswith(f".{name}") for key in KEYS)


def test_every_row_says_what_is_seen_why_what_happens_and_what_to_do() -> None:
    assert len(ROWS) >= 18
    assert [row for row in ROWS if len(row) != 4 or not all(row)] == []


def test_every_configuration_key_exists() -> None:
    named = [quote.partition("=")[0] for quote in QUOTED if re.fullmatch(r"[a-z_]+(\.[a-z_<>]+)+(=\S*)?", quote)]
    named = [name for name in named if not name.endswith((".py", ".json", ".sh", ".md")) and not name.startswith("vm.")]
    assert len(named) >= 25
    assert [name for name in named if not is_key(name)] == []


def test_every_choice_that_is_recommended_is_one() -> None:
    for group, choice in re.findall(r"`(game|model|judge|data|cluster)=(\w+)`", TEXT):
        assert (ROOT / "conf" / group / f"{choice}.yaml").is_file()


def test_every_metric_is_documented() -> None:
    named = [quote for quote in QUOTED if re.match(r"(train_optim|generation|timers|memory|judge)/[\w<>]+$", quote)]
    assert len(named) >= 8
    assert [name for name in named if not {name, name.partition("/")[2]} & METRICS] == []
    plain = [quote for quote in QUOTED if re.fullmatch(r"[a-z]+(_[a-z]+)*", quote)]
    assert [name for name in plain if name not in METRICS | NOT_OURS] == []


def test_every_command_exists(capsys: pytest.CaptureFixture[str]) -> None:
    named = {quote.split()[1] for quote in QUOTED if quote.startswith("nemo-magic ")} | {"convert hf-to-nemo"}
    assert len(named) >= 4
    for command in named:
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), "--help"])
        assert ended.value.code == 0, command
        assert ("--dry-run" in capsys.readouterr().out) or command != "train"


def test_every_setting_of_the_slurm_scripts_exists() -> None:
    site = (ROOT / "slurm" / "site.example.sh").read_text(encoding="utf-8")
    named = {quote.partition("=")[0] for quote in QUOTED if re.fullmatch(r"[A-Z][A-Z_]+(=\w+)?", quote)} - {"RUN"}
    assert {"MPI", "MAX_FAILURES", "MAX_RESTARTS", "SIGNAL_AHEAD"} <= named
    assert [name for name in named if not re.search(rf"^{name}=", site, re.MULTILINE)] == []
    scripts = {path for path in re.findall(r"slurm/\w+\.sh", TEXT) if path != "slurm/site.sh"}
    assert [path for path in scripts if not (ROOT / path).is_file()] == []


def test_our_own_messages_are_quoted_as_they_are() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "nemo_magic").rglob("*.py")))
    said = re.sub(r'"\s*\n\s*f?"', "", code) + (ROOT / "slurm" / "lib.sh").read_text(encoding="utf-8")
    # Where nobody else's report is linked, the message is ours; what is filled in differs.
    ours = [quote for row in ROWS if "](http" not in row[0] for quote in re.findall(r"`([^`]+)`", row[0])]
    ours = [quote for quote in ours if quote.count(" ") > 1 and not quote.startswith("megatron-core")]
    assert len(ours) >= 5
    for quote in ours:
        parts = [part.strip() for part in re.split(r"\d+", quote)]
        assert [part for part in parts if part.count(" ") > 1 and part not in said] == [], quote


def test_a_link_to_a_report_says_where_it_leads() -> None:
    links = re.findall(r"\[([^\]]+)\]\((https://[^)]+)\)", TEXT)
    assert len(links) >= 18
    for name, url in links:
        project, _, number = name.partition("#")
        assert re.fullmatch(rf"https://github\.com/{re.escape(project)}/(issues|pull)/{number}", url), name


def test_a_link_to_a_page_leads_to_one() -> None:
    for target in re.findall(r"\]\(([\w.-]+\.md)\)", TEXT):
        assert (ROOT / "docs" / target).is_file()
