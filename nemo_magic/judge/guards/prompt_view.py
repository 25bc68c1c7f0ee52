"""The part of an item that a guard's model sees, and templates to put it in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from nemo_magic.game.episode import Message
from nemo_magic.judge.protocol import JudgeItem


def prompt_view(item: JudgeItem, with_response: bool, context: bool) -> tuple[Message, ...]:
    """The prompt, with its response if that is judged, as a chat; with ``context``, after all that went before.

    System messages are left out: guards' templates know two roles.

    Raises ValueError if a response is to be judged and there is none.
    """
    if with_response and item.response is None:
        raise ValueError("there is no response to judge")
    chat = [Message(message.role, message.content) for message in item.conversation]
    if not with_response:
        while chat[-1].role != "user":
            chat.pop()
    messages = tuple(message for message in chat if message.role != "system")
    if context:
        return messages
    response = (messages[-1],) if with_response else ()
    return (Message("user", item.prompt), *response)


def fill(template: str, texts: Mapping[str, str]) -> str:
    """``template`` with ``{{name}}`` replaced by ``texts[name]``, once: a ``{{name}}`` within a text is no slot."""
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: texts[slot[1]], template)


def slots(template: str) -> set[str]:
    """The names that ``fill`` replaces."""
    return set(re.findall(r"\{\{(\w+)\}\}", template))
