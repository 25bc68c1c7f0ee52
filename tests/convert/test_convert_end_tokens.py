"""End tokens that differ between a checkpoint's files, and files under a tokenizer's name that are none."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceTrainer

from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.convert.nemo_to_hf import nemo_to_hf
from nemo_magic.hf_format.errors import ConvertError
from tests.convert.tiny_hf import make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made"), "qwen_tied", shard="1GB")


@pytest.fixture
def single(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "single"))


def rewrite(path: Path, **keys: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (content | keys).items() if value is not None}))


BEGIN, END = (
    "{% for m in messages %}<|turn|>{{ m['content'] }}",
    "{% endfor %}{% if add_generation_prompt %}<|turn|>{% endif %}",
)


def ends(token: str) -> str:
    """A chat template that begins every message with <|turn|> and ends it with ``token``."""
    return BEGIN + token + END


@pytest.mark.slow
@pytest.mark.parametrize(
    ("eos", "config", "generation", "template", "wrong", "said"),
    [
        ("</s>", [1, 5], None, ends("</s>"), False, []),
        ("</s>", None, None, ends("</s>"), False, []),
        ("</s>", 1, [4, 1], "{% for m in messages %}{{ m['content'] }}{% endfor %}", False, []),
        ("</s>", 1, 2, ends("</s>"), False, ["generation_config.json has eos_token_id=2 ('<pad>'), the tokenizer 1"]),
        ("</s>", 2, 1, ends("</s>"), False, ["config.json has eos_token_id=2 ('<pad>'), the tokenizer 1 ('</s>')"]),
        ("</s>", 1, None, ends("<pad>"), False, ["the chat template ends answers with '<pad>'; the tokenizer's"]),
        ("</s>", 2, [4], ends("</s>"), True, ["config.json has eos_token_id=2", "generation_config.json has"]),
        ("</s>", 300, None, ends("</s>"), True, ["config.json has eos_token_id=300 (no token)"]),
        ("<|turn|>", 284, 284, ends("</s>"), True, ["ends answers with '</s>', and begins messages with the tok"]),
        ("<|turn|>", 1, 1, ends("</s>"), True, ["config.json", "generation_config.json", "the chat template ends"]),
    ],
)  # fmt: skip
def test_end_tokens_that_differ_are_said_and_impossible_ones_refused(
    single: Path, tmp_path: Path, eos: str, config: Any, generation: Any, template: str, wrong: bool, said: list[str]
) -> None:
    rewrite(single / "config.json", eos_token_id=config)
    rewrite(single / "generation_config.json", eos_token_id=generation)
    rewrite(single / "tokenizer_config.json", eos_token=eos)
    (single / "chat_template.jinja").write_text(template)
    lines: list[str] = []
    if wrong:
        with pytest.raises(ConvertError) as error:
            hf_to_nemo(single, tmp_path / "nemo", say=lines.append)
        lines = str(error.value).splitlines()[1:-1]
        assert not (tmp_path / "nemo").exists()
    else:
        hf_to_nemo(single, tmp_path / "nemo", say=lines.append)
        back: list[str] = []
        nemo_to_hf(tmp_path / "nemo", tmp_path / "hf", say=back.append)
        assert sum("end tokens differ" in line for line in back) == len(said)
        lines = [line for line in lines if "end tokens differ" in line]
    assert len(lines) == len(said)
    assert all(text in line for text, line in zip(said, lines, strict=True))


NO_TOKENIZER = [
    b"GGUF\x03\0\0\0" + bytes(range(256)) * 9,
    b"",
    b"\n",
    b"{}",
    b"version https://git-lfs.github.com/spec/v1\n",
]


@pytest.mark.parametrize("content", NO_TOKENIZER)
def test_a_file_that_is_called_a_tokenizer_and_is_none_stays_behind(
    single: Path, tmp_path: Path, content: bytes
) -> None:
    (single / "tokenizer.model").write_bytes(content)
    lines: list[str] = []
    hf_to_nemo(single, tmp_path / "nemo", say=lines.append)
    assert [line for line in lines if "is no tokenizer" in line and "tokenizer.model" in line]
    assert not (tmp_path / "nemo" / "tokenizer" / "tokenizer.model").exists()
    (single / "tokenizer.json").unlink()
    with pytest.raises(ConvertError, match="no tokenizer can be loaded"):
        hf_to_nemo(single, tmp_path / "other", say=lambda _: None)


def test_tokenizers_of_sentencepiece_and_tiktoken_are_copied(single: Path, tmp_path: Path) -> None:
    model = io.BytesIO()
    words = [f"word{i} and some more of them" for i in range(200)]
    SentencePieceTrainer.train(sentence_iterator=iter(words), model_writer=model, vocab_size=30, minloglevel=2)
    for name, content in (("one", model.getvalue()), ("two", b"IQ== 0\nIg== 1\n")):
        (single / "tokenizer.model").write_bytes(content)
        hf_to_nemo(single, tmp_path / name, say=lambda _: None)
        assert (tmp_path / name / "tokenizer" / "tokenizer.model").read_bytes() == content
