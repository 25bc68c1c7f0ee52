import asyncio
import shutil
from pathlib import Path

import pytest

from nemo_magic.game.episode import Message
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.models import build_model
from nemo_magic.judge.models.transformers import TransformersModel
from tests.judge import tiny_checkpoint
from tests.judge.guard_models import Remembering


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint.make(tmp_path_factory.mktemp("tiny"))[0]


def run(model, work):  # type: ignore[no-untyped-def]
    async def whole():  # type: ignore[no-untyped-def]
        await model.start()
        try:
            return await work(model)
        finally:
            await model.close()

    return asyncio.run(whole())


def test_what_waits_is_decoded_together(folder):
    observer = Remembering()

    async def work(model):
        model.telemetry = observer
        await asyncio.gather(*(model.complete(f"the {i}", 4) for i in range(20)))
        await model.complete("the", 4)

    run(TransformersModel(str(folder), max_batch=8), work)
    assert observer.values["model_batch"] == [8, 8, 4, 1]
    assert observer.values["model_waiting"] == [12, 4, 0, 0]


def test_each_text_has_its_own_length(folder):
    async def work(model):
        short, long = await asyncio.gather(model.complete("the man", 3), model.complete("the man", 12))
        return short, long

    short, long = run(TransformersModel(str(folder)), work)
    assert len(short) < len(long)
    assert long.startswith(short)


def test_what_nobody_waits_for_any_more_is_not_decoded(folder):
    observer = Remembering()

    async def work(model):
        model.telemetry = observer
        asked = [asyncio.create_task(model.complete(f"the {i}", 4)) for i in range(3)]
        await asyncio.sleep(0)
        asked[1].cancel()
        first, gone, last = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert isinstance(first, str)
        assert isinstance(last, str)

    run(TransformersModel(str(folder)), work)
    assert observer.values["model_batch"] == [2]


def test_a_row_that_cannot_be_decoded_does_not_take_the_others_with_it(folder):
    async def work(model):
        whole = model._generate

        def generate(loaded, rows, max_tokens):
            if any(len(row) > 20 for row in rows):
                raise RuntimeError("out of memory")
            return whole(loaded, rows, max_tokens)

        model._generate = generate
        sent = ["the", "x" * 30, "the man"]
        return await asyncio.gather(*(model.complete(text, 4) for text in sent), return_exceptions=True)

    first, heavy, last = run(TransformersModel(str(folder)), work)
    assert isinstance(first, str)
    assert isinstance(last, str)
    assert str(heavy) == "out of memory"


def test_a_chat_that_the_template_refuses_fails_alone(folder):
    async def work(model):
        model._tokenizer.chat_template = "{{ raise_exception('roles') }}"
        chat = (Message("user", "hello"),)
        return await asyncio.gather(model.complete(chat, 4), model.complete("the", 4), return_exceptions=True)

    refused, text = run(TransformersModel(str(folder)), work)
    assert isinstance(refused, ValueError)
    assert str(refused) == f"the chat template of {folder} takes no chat of the roles user: roles"
    assert isinstance(text, str)


def test_the_revision_is_that_of_the_weights_wherever_they_are(folder, tmp_path):
    async def revision(model):
        return model.name, model.revision

    copy = shutil.copytree(folder, tmp_path / "other")
    name, digest = run(TransformersModel(str(folder)), revision)
    assert run(TransformersModel(str(copy)), revision) == ("other", digest)
    assert name == "hf"
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert run(TransformersModel(str(copy)), revision)[1] != digest
    assert run(TransformersModel(str(copy), name="n", revision="7"), revision) == ("n", "7")


def test_a_model_that_is_not_loaded_or_closed_is_away(folder):
    async def work():
        model = build_model({"kind": "transformers", "path": str(folder)})
        with pytest.raises(GuardUnavailable):
            await model.complete("the", 4)
        await model.start()
        asked = [asyncio.create_task(model.complete(f"the {i}", 4)) for i in range(40)]
        await asyncio.sleep(0.01)
        await model.close()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, str | GuardUnavailable) for answer in answers)
        assert isinstance(answers[-1], GuardUnavailable)
        with pytest.raises(GuardUnavailable):
            await model.complete("the", 4)

    asyncio.run(work())


def test_a_folder_without_a_model_is_an_error_at_the_start(tmp_path):
    with pytest.raises((OSError, ValueError)):
        asyncio.run(TransformersModel(str(tmp_path)).start())
    with pytest.raises(ValueError, match="max_batch=0"):
        TransformersModel(str(tmp_path), max_batch=0)
