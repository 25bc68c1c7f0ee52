"""Where an answer ends: by what is read of it, whatever its tokens are."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nemo_magic.actors.sampling import StopConditions, hits_stop_string
from nemo_magic.actors.tokenizer import ChatTokenizer
from tests.actors import tiny_tokenizers

CHATS = {"byte level": tiny_tokenizers.byte_level(), "byte fallback": tiny_tokenizers.byte_fallback()}
LETTERS = "so ✓é𝔸ñ¿日"
TEXTS = st.text(LETTERS, min_size=1, max_size=12)


def first_hit(chat: ChatTokenizer, stops: StopConditions, response: list[int]) -> int | None:
    """How many tokens a generator decodes before it sees a stop string."""
    prompt = list(chat.encode("so"))
    tokens = torch.tensor([prompt + response])
    for size in range(1, len(response) + 1):
        lengths = torch.tensor([len(prompt)]), torch.tensor([size])
        if hits_stop_string(chat, tokens[:, : len(prompt) + size], *lengths, torch.tensor([True]), stops)[0]:
            return size
    return None


@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=150, deadline=None)
@given(before=TEXTS, stop=st.text(LETTERS, min_size=1, max_size=4), after=TEXTS, hidden=st.integers(0, 40))
def test_a_stop_string_is_found_with_the_token_that_completes_it_and_not_before(
    name: str, before: str, stop: str, after: str, hidden: int
) -> None:
    chat = CHATS[name]
    stops = StopConditions.of(chat, [stop], "cpu")
    response = list(chat.encode(f"s{before}{stop}{after}"))
    special = chat._tokenizer.convert_tokens_to_ids(tiny_tokenizers.START)
    response.insert(hidden % len(response), special)  # one that nobody sees
    expected = next(n for n in range(1, len(response) + 1) if stop in chat.raw_text(response[:n]))
    assert first_hit(chat, stops, response) == expected
    assert stops.end_of(chat, response) == expected


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, stop=st.characters(min_codepoint=0xA1, max_codepoint=0x24F))
def test_a_character_that_names_a_byte_is_no_token_and_ends_nothing_else(text: str, stop: str) -> None:
    assume(stop not in text)
    chat = CHATS["byte level"]
    stops = StopConditions.of(chat, [stop], "cpu")
    assert stops.ids.tolist() == [chat.end_id]
    assert stops.strings == (stop,)
    assert stops.end_of(chat, chat.encode(text)) is None
    assert stops.end_of(chat, chat.encode(text + stop)) == len(chat.encode(text + stop))
