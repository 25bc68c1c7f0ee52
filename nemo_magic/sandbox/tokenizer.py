"""The sandbox's tokenizer on disk: a ``tokenizers`` WordLevel model with a chat template, loaded like any other."""

from __future__ import annotations

import json
from pathlib import Path

from nemo_magic.sandbox.language import WORDS
from nemo_magic.sandbox.world import SandboxWorld

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
# Ordinary words, not special tokens: they must survive decoding, for the tags are what is judged.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHAT = ("[system]", "[user]", "[assistant]", "harmful", "benign")

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %} [{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} [assistant]{% endif %}"
)


def write_tokenizer(world: SandboxWorld, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = (*SPECIAL, *TAGS, *CHAT, *WORDS, *world.syllables)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "chat_template": _TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
