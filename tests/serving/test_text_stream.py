"""Ids become text in whole characters, all of it, in time that grows with their number; a token has its own bytes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_magic.actors.tokenizer import ChatTokenizer
from nemo_magic.serving.offset_tokenizer import OffsetTokenizer, TextStream
from tests.actors import tiny_tokenizers

CHATS = {"byte level": tiny_tokenizers.byte_level(), "byte fallback": tiny_tokenizers.byte_fallback()}
BYTES = st.lists(
    st.one_of(st.text("so ✓é𝔸", max_size=4).map(str.encode), st.sampled_from([b"\xe2", b"\x9c", b"\xf0\x9d", b"\x80"]))
).map(b"".join)


def ids_of(name: str, data: bytes) -> list[int]:
    """One token for each byte."""
    wrapped = CHATS[name]._tokenizer
    if name == "byte fallback":
        return [wrapped.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in data]
    names = {bytes(OffsetTokenizer(wrapped, CHATS[name]).token_bytes(i) or []): i for i in range(256)}
    return [names[bytes([byte])] for byte in data]


def offset_tokenizer(name: str) -> OffsetTokenizer:
    return OffsetTokenizer(CHATS[name]._tokenizer, CHATS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHATS)
@settings(max_examples=150, deadline=None)
@given(data=BYTES)
def test_pieces_make_up_the_text_and_none_breaks_a_character(name: str, data: bytes) -> None:
    ids, chat = ids_of(name, data), CHATS[name]
    stream = TextStream(chat)
    pieces = [stream.push(index) for index in ids]
    text = "".join(pieces) + stream.finish()
    if "�" not in chat.raw_text(ids):
        assert not any("�" in piece for piece in pieces)
    if "�" not in chat.raw_text(ids) or name == "byte level":
        # One wrong byte makes all bytes beside it unreadable where bytes are a fallback, those of before as well.
        assert text == chat.raw_text(ids)
        assert offset_tokenizer(name).of_ids(ids).text == chat.raw_text(ids, special=True)
    assert "".join(text for text, _ in offset_tokenizer(name).parts(ids, ["✓"])) == chat.raw_text(ids).split("✓")[0]
    assert sum(size for _, size in offset_tokenizer(name).parts(ids, ["✓"])) == len(ids)


@pytest.mark.parametrize("byte", [b"\xe2", b"\x80", b"\xff"])
def test_unfinished_characters_are_decoded_a_few_at_a_time(byte: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, most = ids_of("byte level", byte * 400), 0
    decode = ChatTokenizer.raw_text

    def count(self: ChatTokenizer, ids: list[int], special: bool = False) -> str:
        nonlocal most
        most = max(most, len(ids))
        return decode(self, ids, special)

    monkeypatch.setattr(ChatTokenizer, "raw_text", count)
    assert offset_tokenizer("byte level").of_ids(ids).text == "�" * 400
    assert most < 20


@pytest.mark.parametrize("name", CHATS)
def test_a_token_that_is_a_part_of_a_character_has_its_own_bytes(name: str) -> None:
    text = "é✓𝔸"
    ids = ids_of(name, text.encode())
    told = [bytes(offset_tokenizer(name).token_bytes(index) or []) for index in ids]
    assert b"".join(told).decode() == text
    special = CHATS[name].end_id
    assert offset_tokenizer(name).token_bytes(special) == list(tiny_tokenizers.END.encode())
