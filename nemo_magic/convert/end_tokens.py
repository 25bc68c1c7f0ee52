"""Four files say what ends an answer: config.json, generation_config.json, the tokenizer and its chat template.

Actors are trained to write, and stop at, the tokenizer's end token; other programs stop at those of
generation_config.json. Where the files differ, answers never end, or end before they begin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_magic.hf_format.errors import ConvertError

GENERATION = "generation_config.json"
_ANSWER = "ANSWER"


def differences(config: Mapping[str, Any], generation: Mapping[str, Any], tokenizer: Any) -> list[str]:
    """In words, how the end tokens differ; nothing where all agree.

    ``config``, ``generation``: the content of config.json and generation_config.json, empty where there is no such
    file. A file that names several has to have the tokenizer's among them. One that names none, and a template that
    ends answers with no special token, agree with any.
    """
    own = tokenizer.eos_token_id
    if own is None:
        return []
    problems = [
        f"{name} has eos_token_id={given.get('eos_token_id')} ({_texts(tokenizer, ends)}), the tokenizer {own} "
        f"({tokenizer.eos_token!r})"
        for name, given in (("config.json", config), (GENERATION, generation))
        if (ends := _ids(given)) and own not in ends
    ]
    before, after = _around_answer(tokenizer)
    if after is not None and after != tokenizer.eos_token:
        begins = ", and begins messages with the tokenizer's" if tokenizer.eos_token in before else ""
        problems.append(
            f"the chat template ends answers with {after!r}{begins}; the tokenizer's end token (eos_token in "
            f"tokenizer_config.json) is {tokenizer.eos_token!r}"
        )
    return problems


def refuse_wrong(config: Mapping[str, Any], folder: Path, tokenizer: Any) -> list[str]:
    """The differences in the checkpoint of ``folder``, whose config.json is ``config``.

    Raises:
        ConvertError: the tokenizer's end token can be none: no file that names end tokens has it, or the chat template
            begins messages with it. Base models, which were taught no chat, may differ from their template otherwise.
    """
    generation = read_generation(folder)
    problems = differences(config, generation, tokenizer)
    named = [ends for given in (config, generation) if (ends := _ids(given))]
    unknown = bool(named) and not any(tokenizer.eos_token_id in ends for ends in named)
    before, after = _around_answer(tokenizer)
    if problems and (unknown or (after is not None and after != tokenizer.eos_token and tokenizer.eos_token in before)):
        raise ConvertError(
            f"{folder}: its files do not agree on the end token:\n"
            + "\n".join(f"  {line}" for line in problems)
            + "\nan actor would stop at the wrong token: correct eos_token in tokenizer_config.json, or eos_token_id"
        )
    return problems


def read_generation(folder: Path) -> Mapping[str, Any]:
    """The folder's generation_config.json; empty where there is none. Raises ConvertError if it is no JSON object."""
    path = folder / GENERATION
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConvertError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConvertError(f"{path} holds no JSON object")
    return content


def _ids(given: Mapping[str, Any]) -> list[int]:
    value = given.get("eos_token_id")
    return [] if value is None else list(value) if isinstance(value, list) else [value]


def _texts(tokenizer: Any, ids: list[int]) -> str:
    return ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) if i < len(tokenizer) else "no token" for i in ids)


def _around_answer(tokenizer: Any) -> tuple[str, str | None]:
    """What the template writes before an answer, and the special token right after it, if there is one."""
    from jinja2 import TemplateError

    if not getattr(tokenizer, "chat_template", None):
        return "", None
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except (TemplateError, TypeError):
        return "", None
    before, _, after = text.rpartition(_ANSWER)
    special = [
        *tokenizer.all_special_tokens,
        *(t.content for t in tokenizer.added_tokens_decoder.values() if t.special),
    ]
    ends = [token for token in special if after.lstrip().startswith(token)]
    return before, max(ends, key=len, default=None)
