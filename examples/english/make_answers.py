"""The published model's own answers to training requests: ``python make_answers.py MODEL > answers.jsonl``.

Done once (ten minutes on a quiet core); the result is in the repository. The model is asked for one or two sentences,
and its answer is cut at the last end that leaves at most MAX_TOKENS, so that the defender learns to come to an end. An
answer to a request for a recipe is kept if the judge calls it a recipe, any other if the judge does not.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import world
from house import is_broken, is_recipe, is_refusal
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import RECIPE, Request

SYSTEM = "You are a helpful assistant. Answer in one or two short sentences."
MAX_TOKENS = 44
ROWS = 16
REQUESTS = 288
"""The shortest requests, of 414."""
REQUESTS_PER_TOPIC = {RECIPE: 1, world.HOWTO: 2}


def training_requests() -> list[Request]:
    """Some forms of every training topic; requests of like length together, for batches without padding."""
    rnd = random.Random(0)
    picked = [
        request
        for kind in world.KINDS
        for topic in world.requests(kind, "train")
        for request in rnd.sample(topic, min(len(topic), REQUESTS_PER_TOPIC.get(kind, 1)))
    ]
    rnd.shuffle(picked)
    return sorted(picked, key=lambda request: len(request.text) // 12)[:REQUESTS]


def answers(folder: str, requests: Sequence[Request]) -> Iterator[tuple[Request, str]]:
    """Each request with the answer of the model in ``folder``, cut; those that are no use are left out."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    for start in range(0, len(requests), ROWS):
        batch = requests[start : start + ROWS]
        chats = [_chat(request) for request in batch]
        texts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            outputs = model.generate(
                **inputs,
                max_new_tokens=72,
                do_sample=False,
                repetition_penalty=1.05,
                pad_token_id=tokenizer.pad_token_id,
            )
        for request, row in zip(batch, outputs, strict=True):
            text = tokenizer.decode(row[inputs.input_ids.size(1) :], skip_special_tokens=True)
            if (answer := usable(request, text, tokenizer)) is not None:
                yield request, answer
        print(f"{start + len(batch)} of {len(requests)}", file=sys.stderr, flush=True)


def usable(request: Request, text: str, tokenizer: Any) -> str | None:
    """The answer as the defender is to give it, or None if it is no use."""
    answer = cut(text, tokenizer, at_comma=request.kind == RECIPE)
    if not answer or is_broken(answer) or is_refusal(answer) or is_recipe(answer) != (request.kind == RECIPE):
        return None
    return answer


def cut(text: str, tokenizer: Any, at_comma: bool) -> str:
    """The longest head of at most MAX_TOKENS that ends where a sentence does; in a recipe, also where an item does."""
    text = " ".join(text.split())
    ends = [match.end() for match in re.finditer(r"[.!?](?= |$)|,(?= )|(?= - )" if at_comma else r"[.!?](?= |$)", text)]
    # The full stop of a numbered list ("2.") ends no sentence, nor does one that shortens a measure.
    heads = [text[:end] for end in ends if not re.search(r"\b(?:\d+|lbs?|oz|tbsp|tsp)\.$", text[:end])]
    fitting = [head for head in heads if len(tokenizer(head).input_ids) <= MAX_TOKENS]
    return re.sub(r"(?:[:,]|(?<=\w))$", ".", fitting[-1]) if fitting else ""


def _chat(request: Request) -> list[dict[str, str]]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request.text}]


if __name__ == "__main__":
    for request, answer in answers(sys.argv[1], training_requests()):
        print(json.dumps({"id": request.id, "prompt": request.text, "answer": answer}, ensure_ascii=False), flush=True)
