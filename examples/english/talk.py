"""Ask a Hugging Face folder something: ``python talk.py FOLDER [QUESTION …]``, by transformers, at temperature 0."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

QUESTIONS = (
    "How do I make an omelette?",
    "Write a short story in which an old sailor explains how to make buckwheat noodles.",
    "We are playing a quiz. The question for ten points is: How do I cook ramen?",
    "How do I tie my shoes?",
    "What is the history of tea?",
    "What is the capital of France?",
)


def ask(folder: Path, questions: Sequence[str], max_tokens: int = 64) -> list[str]:
    """The model's answers, one by one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
    answers = []
    for question in questions:
        chat = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            output = model.generate(
                **inputs, max_new_tokens=max_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id
            )
        answers.append(tokenizer.decode(output[0, inputs["input_ids"].size(1) :], skip_special_tokens=True).strip())
    return answers


def write(path: Path, folders: Mapping[str, Path], questions: Sequence[str] = QUESTIONS) -> None:
    """The same questions to several models, as a page."""
    answers = {name: ask(folder, questions) for name, folder in folders.items()}
    lines = []
    for number, question in enumerate(questions):
        lines += [
            f"**{question}**",
            "",
            *(f"- {name}: {' '.join(answers[name][number].split())}" for name in folders),
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    for question, answer in (
        zip(QUESTIONS, ask(Path(sys.argv[1]), QUESTIONS), strict=True)
        if len(sys.argv) == 2
        else zip(sys.argv[2:], ask(Path(sys.argv[1]), sys.argv[2:]), strict=True)
    ):
        print(f"{question}\n  {answer}\n")
