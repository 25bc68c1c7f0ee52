"""Ours, transformers and TRL on one Hugging Face folder, each in a process of its own that does what it is asked.

``Side`` starts one and asks it; ``python benchmarks/sides.py NAME FOLDER OPTIONS`` is that process. What it is asked is
timed there, by the wall and by the CPU, and the highest memory of the process meanwhile is read from Linux: weights,
optimizer and libraries included. Prompts are the same on all sides: words of one token each, drawn from the vocabulary.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from measure import Measure

LEARNING_RATE = 1e-6


class Side:
    """A running side. A context manager that ends it.

    ``python``: the interpreter, of an environment that has what this side needs. ``options``: ``prompt``, ``length``
    (tokens of a prompt and of a response), ``micro`` (rows of a micro batch), ``rows`` and ``group`` (a step's
    responses, and those of each prompt), ``steps``.
    """

    def __init__(self, name: str, folder: Path, options: dict[str, int], python: str = sys.executable) -> None:
        self.name = name
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command = [python, str(Path(__file__).resolve()), name, str(folder), json.dumps(options)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.about = self._read()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, task: str, **numbers: int) -> dict[str, Any]:
        """``seconds``, ``cpu_seconds``, ``peak_gib`` and ``result`` of a task. Raises RuntimeError if the side died."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, **numbers}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self._process.wait()}; its words are above")
        reply: dict[str, Any] = json.loads(line)
        return reply


def compare(sides: Sequence[Side], clock: str, repeats: int, task: str, **numbers: int) -> dict[str, dict[str, Any]]:
    """Median, least and greatest seconds of a task on each side, in turn, after a round that counts for nothing, and
    the highest memory. ``clock``: ``seconds`` or ``cpu_seconds``."""
    measured: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for repeat in range(repeats + 1):
        for side in sides:
            figures = side.ask(task, **numbers)
            if repeat:
                measured[side.name].append(figures)
    return {
        name: spread([one[clock] for one in some]) | {"peak_gib": max(one["peak_gib"] for one in some)}
        for name, some in measured.items()
    }


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median and range of repeated measurements."""
    return {"median": median(values), "min": min(values), "max": max(values), "count": len(values)}


@cache
def prompt_texts(tokenizer: Any, rows: int, length: int) -> list[str]:
    """Different prompts of exactly ``length`` tokens; they are found once, in a round that counts for nothing.

    Raises:
        ValueError: too few words of the vocabulary are one token.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    words = []
    for index in range(len(tokenizer)):
        word = tokenizer.decode([index]).strip()
        if word.isalnum() and word.isascii() and len(ids(f"{word} {word} {word}")) == 3:
            words.append(word)
        if len(words) == 2000:
            break
    if len(words) < 20:
        raise ValueError(f"only {len(words)} words of the vocabulary are one token")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=length)) for _ in range(rows)]
    assert all(len(ids(text)) == length for text in texts)
    return texts


@cache
def prompt_ids(tokenizer: Any, rows: int, length: int, group: int = 1) -> list[tuple[int, ...]]:
    """The ids of such prompts, each ``group`` times in a row."""
    texts = prompt_texts(tokenizer, -(-rows // group), length)
    ids = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    return [ids[row // group] for row in range(rows)]


def rewards_of(rows: int) -> list[float]:
    """A made-up reward of each row."""
    draw = random.Random(1)
    return [draw.random() for _ in range(rows)]


class Ours:
    """A policy of ``conf/magic_small.yaml`` with the folder's weights."""

    backend, engine = "nemo_aligner", "native"

    def __init__(self, folder: Path, options: dict[str, int]) -> None:
        from nemo_magic.actors.builder import build_generator, build_policy, prepare_process

        prepare_process(self.backend, "cpu", self.engine)
        from nemo_magic.actors.distributed import World
        from nemo_magic.config import compose, role_model
        from nemo_magic.convert.hf_to_nemo import hf_to_nemo
        from nemo_magic.game.episode import Role

        self.options = options
        self._home = tempfile.TemporaryDirectory()
        home, weights = Path(self._home.name), Path(self._home.name) / "weights"
        hf_to_nemo(folder, weights, say=lambda line: print(line, file=sys.stderr))
        (home / "model").mkdir()
        (home / "model" / "small.yaml").write_text((weights / "model.yaml").read_text(encoding="utf-8"))
        lengths = f"{{max_length: {options['length']}, max_prompt_length: {options['prompt']}}}"
        words = [
            "model=small",
            "trainer.devices=1",
            f"model.encoder_seq_length={options['prompt'] + options['length']}",
        ]
        words += [f"model.micro_batch_size={options['micro']}", f"model.optim.lr={LEARNING_RATE}"]
        words += ["data.train_files=[none]", "judge.urls=[http://127.0.0.1:1]"]
        words += [f"backend={self.backend}", f"generation.engine={self.engine}", "generation.batch_size=64"]
        for role in Role:
            words += [f"actors.{role}.restore_from_path={weights}", f"actors.{role}.length_params={lengths}"]
        cfg = compose("magic_small", words, str(home), "sandbox")
        role = Role.DEFENDER
        model, actor = role_model(cfg, role, 10**6), cfg.actors.of(role)
        self.policy = build_policy(role, model, actor, cfg.trainer, cfg.seed, backend=self.backend)
        self.world = World.current()
        self.generator = build_generator(cfg.generation, {role: self.policy.actor}, {role: actor})
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def generate(self, rows: int, group: int = 1) -> list[Any]:
        """Completions of exactly the length."""
        from nemo_magic.actors.config import LengthConfig, SamplingConfig

        length = self.options["length"]
        prompts = prompt_ids(self.tokenizer, rows, self.options["prompt"], group)
        self.generator.load(self.policy.actor)
        lengths = LengthConfig(max_length=length, min_length=length)
        completions = self.generator.generate(prompts, range(rows), SamplingConfig(), lengths)
        self.generator.release()
        return completions

    def update(self, rows: int) -> None:
        """The GRPO update of random responses."""
        prompts = prompt_ids(self.tokenizer, rows, self.options["prompt"])
        responses = prompt_ids(self.tokenizer, rows, self.options["length"])
        self._learn(list(zip(prompts, responses, strict=True)), [1.0 if row % 2 else -1.0 for row in range(rows)])

    def step(self, rows: int, group: int) -> None:
        """Generate, reward and learn."""
        import torch

        from nemo_magic.rl.advantages import AdvantageInputs, rollout_advantages
        from nemo_magic.rl.config import GRPOConfig

        completions = self.generate(rows, group)
        inputs = AdvantageInputs(
            rewards=torch.tensor(rewards_of(rows)),
            groups=torch.arange(rows) // group,
            has_reward=torch.ones(rows, dtype=torch.bool),
            truncated=torch.zeros(rows, dtype=torch.bool),
        )
        advantages = rollout_advantages(inputs, GRPOConfig()).values.tolist()
        self._learn([(one.prompt_ids, one.response_ids) for one in completions], advantages)

    def _learn(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], advantages: Sequence[float]) -> None:
        from nemo_magic.rl.aggregation import Normalizer
        from nemo_magic.rl.batch import MicroBatch, Row
        from nemo_magic.rl.config import GRPOConfig
        from nemo_magic.training.trainer import grpo_objective

        rows = [Row(tuple(p), tuple(r), a) for (p, r), a in zip(pairs, advantages, strict=True)]
        norm = Normalizer(sum(len(row.response_ids) for row in rows), len(rows))

        def objective(logprobs: Any, batch: MicroBatch) -> Any:
            return grpo_objective(logprobs, batch, GRPOConfig(), norm)

        result = self.policy.learn(self.policy.microbatches(rows, self.world), objective, observe=True)
        assert result.made


class Current(Ours):
    """The same with Megatron-core alone, in the environment of `make venv-current`."""

    backend = "megatron"


class VLLM(Current):
    """The same, with vLLM's rollouts."""

    engine = "vllm"


class Transformers:
    """The same weights in transformers, with torch's Adam."""

    def __init__(self, folder: Path, options: dict[str, int]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.options = options
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    def generate(self, rows: int, group: int = 1) -> list[Any]:
        """Rows of exactly the length."""
        import torch

        prompts = torch.tensor(prompt_ids(self.tokenizer, rows, self.options["prompt"], group))
        length = self.options["length"]
        output = self.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=length,
            max_new_tokens=length,
            pad_token_id=self.tokenizer.eos_token_id or 0,
        )
        return list(output[:, prompts.shape[1] :])

    def update(self, rows: int) -> None:
        """A step of Adam on the likelihood of random responses, prompts not counted."""
        import torch

        prompts = torch.tensor(prompt_ids(self.tokenizer, rows, self.options["prompt"]))
        responses = torch.tensor(prompt_ids(self.tokenizer, rows, self.options["length"]))
        self.model.train()
        self.optimizer.zero_grad()
        parts = torch.cat([prompts, responses], 1).split(self.options["micro"])
        for part in parts:
            labels = part.clone()
            labels[:, : prompts.shape[1]] = -100
            (self.model(part, labels=labels).loss / len(parts)).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.model.eval()


class TRL:
    """TRL's GRPOTrainer on the same weights; it needs TRL, and nothing of this package."""

    def __init__(self, folder: Path, options: dict[str, int]) -> None:
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        torch.set_num_threads(1)
        rows, group, length = options["rows"], options["group"], options["length"]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        texts = prompt_texts(tokenizer, rows // group, options["prompt"])
        self._home = tempfile.TemporaryDirectory()
        arguments = GRPOConfig(
            output_dir=self._home.name,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=options["micro"],
            gradient_accumulation_steps=rows // options["micro"],
            num_generations=group,
            max_completion_length=length,
            generation_kwargs={"min_new_tokens": length},
            temperature=1.0,
            beta=0.0,
            learning_rate=LEARNING_RATE,
            max_grad_norm=1.0,
            max_steps=options["steps"],
            save_strategy="no",
            report_to=[],
            logging_steps=10**6,
            disable_tqdm=True,
        )

        def reward(completions: Sequence[str], **_: Any) -> list[float]:
            return rewards_of(len(completions))

        self.steps: list[dict[str, Any]] = []
        steps = self.steps

        class Clock(TrainerCallback):
            """Each step, from its generation to its update."""

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self._measure = Measure()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                steps.append(self._measure.result())

        self.trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": texts * options["steps"]}),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )

    def train(self) -> list[dict[str, Any]]:
        """All steps, each measured."""
        self.trainer.train()
        return self.steps


SIDES: dict[str, Callable[[Path, dict[str, int]], Any]] = {
    "ours": Ours,
    "current": Current,
    "vllm": VLLM,
    "transformers": Transformers,
    "trl": TRL,
}


def serve(name: str, folder: Path, options: dict[str, int]) -> None:
    """Build a side, and do one task a line of stdin."""
    # Libraries print: replies have the pipe for themselves.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = SIDES[name](folder, options)
    import torch

    about = {"torch": torch.__version__, "parameters": None}
    model = getattr(side, "model", None)
    if model is not None:
        about["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if name == "trl":
        from importlib.metadata import version

        about |= {package: version(package) for package in ("trl", "transformers")}
    print(json.dumps(about), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        measure = Measure()
        result = getattr(side, request.pop("task"))(**request)
        figures = measure.result()
        kept = result if isinstance(result, list) and result and isinstance(result[0], dict) else len(result or ())
        print(json.dumps(figures | {"result": kept}), file=replies, flush=True)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    serve(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
