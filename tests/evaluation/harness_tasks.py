"""Made-up tasks of lm-evaluation-harness, with the answers of a served model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from nemo_magic.actors.config import ActorConfig, LengthConfig, SamplingConfig
from nemo_magic.game.episode import Message
from nemo_magic.rollout.huggingface import HuggingFacePolicy
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld
from tests.evaluation.served_world import ServedWorld

CASES = 24


def write_tasks(world: ServedWorld) -> Path:
    """Two made-up tasks. Of the second, half of the right answers are what the model says, the other half it never
    says."""
    folder = world.home / "tasks"
    folder.mkdir()
    draw = torch.Generator().manual_seed(5)
    words = SandboxWorld(SandboxConfig()).syllables

    def some(count: int) -> str:
        return " ".join(words[i] for i in torch.randint(len(words), (count,), generator=draw).tolist())

    choices = [
        {"question": some(3 + n % 5), "choices": [some(1 + n % 3), some(2), some(1)], "answer": n % 3}
        for n in range(CASES)
    ]
    policy = HuggingFacePolicy(
        world.hf, ActorConfig(length_params=LengthConfig(6, 0), sampling_params=SamplingConfig(end_strings=["ka"])), 8
    )
    replies = []
    for n in range(CASES):
        question = some(3 + n % 4)
        said = policy.generate([(Message("user", question),)], [0], True)[0]
        assert said is not None
        replies.append({"question": question, "answer": said.text if n % 2 else "nobody says this"})
    common = {
        "dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}", "metadata": {"version": 1.0},
    }  # fmt: skip
    for name, rows, own in (
        ("made_up_choice", choices, {
            "output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }),
        ("made_up_reply", replies, {
            "output_type": "generate_until", "doc_to_target": "{{answer}}", "metric_list": [{"metric": "exact_match"}],
            "filter_list": [{"name": "stripped", "filter": [
                {"function": "regex", "regex_pattern": r"^\s*(.*?)\s*$"}, {"function": "take_first"},
            ]}],
            "generation_kwargs": {"until": ["ka"], "max_gen_toks": 6, "temperature": 0.0, "do_sample": False},
        }),
    ):  # fmt: skip
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"data_files": {"test": str(file)}, "cache_dir": str(world.home / "cache")}
        task = common | own | {"task": name, "dataset_kwargs": given}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder
