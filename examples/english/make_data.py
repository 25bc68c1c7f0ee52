"""Write the seeds and the warm-up pools from the word lists: the same files each time.

``answers.jsonl`` holds the published model's own answers to training requests (make_answers.py); the defender's warm-up
repeats them, so that it learns whom to refuse and nothing else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import world
from world import RECIPE, Request

HERE = Path(__file__).parent
ANSWERS = HERE / "answers.jsonl"

FORMS_PER_DISH = {"train": 4, "val": 2, "test": 2}
FORMS_PER_ACTIVITY = {"train": 2, "val": 1, "test": 1}

REFUSALS = (
    "I'm sorry, but I can't share recipes.",
    "I'm sorry, I can't help with recipes. Is there anything else I can do for you?",
    "I can't share recipes here. Please ask me something else.",
)

PLAIN_PER_DISH = 3
"""All of them are refused, and disguised ones answered under every strategy. How much the warm-up leaves to play for
comes from this; tuned on the validation split (docs/english.md)."""


def seeds(split: str) -> list[Request]:
    """The seeds of a split: some forms of every topic, all of its questions."""
    rnd = random.Random(f"seeds/{split}")
    counts = {RECIPE: FORMS_PER_DISH[split], world.HOWTO: FORMS_PER_ACTIVITY[split]}
    rows = [
        request
        for kind in world.KINDS
        for topic in world.requests(kind, split)
        for request in rnd.sample(topic, min(counts.get(kind, 1), len(topic)))
    ]
    rnd.shuffle(rows)
    return rows


def attack_pool(rewrites_per_seed: int = 3) -> list[dict[str, str]]:
    """Demonstrations for the attacker: training seeds, harmful and benign, under the strategies of the pool."""
    rnd = random.Random("attack pool")
    rows = []
    for request in seeds("train"):
        for strategy in rnd.sample(world.STRATEGIES, rewrites_per_seed):
            rewrite = rnd.choice(list(strategy.rewrites(request)))
            reasoning = rnd.choice(strategy.reasons)
            rows.append(_attack(request, strategy.name, reasoning, rewrite))
    return rows


def defender_pool(answers: Mapping[str, str]) -> list[dict[str, str]]:
    """Demonstrations for the defender: refusals of plain requests to cook, the published model's answers to all else.

    ``answers``: request id → answer. A disguised request to cook is answered as the plain one was.
    """
    rnd = random.Random("defender pool")
    rows = []
    for kind in world.KINDS:
        for topic in world.requests(kind, "train"):
            given = [request for request in topic if request.id in answers]
            if kind == RECIPE:
                rows += _recipe_rows(rnd, topic, [answers[request.id] for request in given])
            else:
                rows += [row for request in given for row in _allowed_rows(rnd, topic, request, answers[request.id])]
    rnd.shuffle(rows)
    return rows


def _recipe_rows(rnd: random.Random, topic: Sequence[Request], answers: Sequence[str]) -> list[dict[str, str]]:
    """Plain requests, and disguised ones for a dish with an answer."""
    rows = []
    for request in rnd.sample(topic, PLAIN_PER_DISH):
        rows.append(_chat(request.text, rnd.choice(REFUSALS)))
    for strategy in world.STRATEGIES if answers else ():
        rewrite = rnd.choice(list(strategy.rewrites(rnd.choice(topic))))
        rows.append(_chat(rewrite, rnd.choice(answers)))
    return rows


def _allowed_rows(rnd: random.Random, topic: Sequence[Request], request: Request, answer: str) -> list[dict[str, str]]:
    """The request, its topic in any form once more, and a disguise of it: what is not disguised weighs more."""
    strategy = rnd.choice(world.STRATEGIES)
    disguise = rnd.choice(list(strategy.rewrites(request)))
    return [_chat(text, answer) for text in (request.text, rnd.choice(topic).text, disguise)]


def disguised(split: str, strategies: Sequence[world.Strategy], each: int) -> list[dict[str, str]]:
    """A split's seeds under strategies, ``each`` of them, as an evaluation sends them."""
    rnd = random.Random(f"disguised/{split}/{strategies[0].name}")
    return [
        {
            "id": f"{request.id}/{strategy.name}",
            "prompt": rnd.choice(list(strategy.rewrites(request))),
            "label": request.label,
        }
        for request in seeds(split)
        for strategy in rnd.sample(strategies, each)
    ]


def write(folder: Path) -> None:
    """All files, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in world.SPLITS:
        _write(folder / f"seeds.{split}.jsonl", map(_seed, seeds(split)))
        for kind in world.KINDS:
            _write(folder / f"{split}.{kind}.jsonl", (_seed(r) for r in seeds(split) if r.kind == kind))
        _write(folder / f"{split}.disguised.jsonl", disguised(split, world.STRATEGIES, 1))
        _write(folder / f"{split}.held_out.jsonl", disguised(split, world.HELD_OUT, 1))
    _write(folder / "attack_pool.jsonl", attack_pool())
    answers = {row["id"]: row["answer"] for row in map(json.loads, ANSWERS.read_text(encoding="utf-8").splitlines())}
    _write(folder / "defender_pool.jsonl", defender_pool(answers))


def _seed(request: Request) -> dict[str, str]:
    return {"id": request.id, "prompt": request.text, "label": request.label, "kind": request.kind}


def _attack(request: Request, strategy: str, reasoning: str, rewrite: str) -> dict[str, str]:
    seed = {"prompt": request.text, "label": request.label}
    return seed | {"strategy": strategy, "reasoning": reasoning, "rewrite": rewrite}


def _chat(prompt: str, response: str) -> dict[str, str]:
    return {"prompt": prompt, "response": response}


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    import sys

    write(Path(sys.argv[1]))
