"""Tokenizers of every make, tiny, that speak bytes or words, with a template that marks turns by tokens."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from nemo_magic.actors.tokenizer import ChatTokenizer

START, END = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "{% for m in messages %} [{{ m['role'] }}] {{ m['content'] }}{% endfor %} [assistant]"


def of(wrapped: Any, template: str = CHATML) -> ChatTokenizer:
    wrapped.chat_template = template
    return ChatTokenizer(SimpleNamespace(tokenizer=wrapped))


def byte_level(special: bool = True, normalizer: Any = None, **options: Any) -> ChatTokenizer:
    """One token a byte, as GPT-2's and Qwen's have them. ``special``: turn markers are declared as such."""
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    built = Tokenizer(models.BPE(vocabulary, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    if normalizer is not None:
        built.normalizer = normalizer
    built.add_tokens([AddedToken(START, special=special, normalized=normalizer is not None, **options)])
    built.add_tokens(["<think>", "</think>"])
    return of(PreTrainedTokenizerFast(tokenizer_object=built, eos_token=END))


def byte_fallback() -> ChatTokenizer:
    """Words with a leading blank, and bytes where there is none, as Llama 2's."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *(f"▁{c}" for c in "asol"), *"asol<|>_im"]
    vocabulary = {token: i for i, token in enumerate(pieces)}
    built = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    built.normalizer = normalizers.Replace(" ", "▁")
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    built.add_special_tokens([START, END, "<s>"])
    return of(PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token=END, unk_token="<unk>"))


def words() -> ChatTokenizer:
    """Whole words. The turn markers are some of them, and added tokens too."""
    vocabulary = ["<unk>", "<eos>", "[system]", "[user]", "[assistant]", "<think>", "so", "li", "a"]
    built = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    built.add_tokens(vocabulary[2:5])
    return of(PreTrainedTokenizerFast(tokenizer_object=built, eos_token="<eos>", unk_token="<unk>"), WORDS)


def slow(folder: Path) -> ChatTokenizer:
    """Python's own, without offsets."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    wrapped = GPT2Tokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    wrapped.add_special_tokens({"eos_token": END, "additional_special_tokens": [START]})
    return of(wrapped)


def every(folder: Path) -> dict[str, ChatTokenizer]:
    return {
        "byte level": byte_level(),
        "byte level, markers not declared": byte_level(special=False),
        "byte level, markers that take blanks": byte_level(lstrip=True, rstrip=True),
        "byte level, normalized": byte_level(normalizer=normalizers.NFKC()),
        "byte fallback": byte_fallback(),
        "words": words(),
        "slow": slow(folder),
    }
