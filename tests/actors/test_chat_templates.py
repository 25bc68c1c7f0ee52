"""A chat template that refuses a chat does so in its own words, not in a traceback."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from nemo_magic.actors.errors import ModelError
from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.cli import _expected_errors
from nemo_magic.game.episode import Message

BODY = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
REFUSES = {
    "no system role": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no such role') }}{% endif %}",
    "roles must alternate": (
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
    ),
    "what is not there": "{{ messages[0]['role'].no_such_thing.at_all }}",
    "broken": "{% if messages %}",
}


def tokenizer(template: str) -> ChatTokenizer:
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="<eos>",
        chat_template=template,
        name_or_path="a-folder",
    )
    return ChatTokenizer(SimpleNamespace(tokenizer=wrapped))


@pytest.mark.parametrize("kind", REFUSES)
def test_a_template_that_refuses_a_chat_is_named_with_its_own_words_and_what_to_do(kind: str) -> None:
    chat = (Message("system", "be brief"), Message("user", "wug"))
    with pytest.raises(ModelError, match="template of a-folder takes no chat of the roles system, user: ") as error:
        tokenizer(REFUSES[kind] + BODY).prompt_ids(chat)
    assert "game.prompts.attacker_system" in str(error.value)
    assert isinstance(error.value, _expected_errors())


def test_a_chat_that_the_template_takes_is_encoded() -> None:
    assert len(tokenizer(REFUSES["no system role"] + BODY).prompt_ids((Message("user", "wug"),))) == 1


def test_what_has_no_system_message_is_not_told_about_it() -> None:
    with pytest.raises(ModelError, match="roles user: ") as error:
        tokenizer("{{ raise_exception('never') }}").prompt_ids((Message("user", "wug"),))
    assert "game.prompts" not in str(error.value)
