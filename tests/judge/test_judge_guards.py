import asyncio

import pytest

from nemo_magic.game.episode import Answer, Safety
from nemo_magic.judge.errors import GuardUnavailable
from nemo_magic.judge.guards import GUARDS, answers_of, build_guard, refuse_unanswerable
from nemo_magic.judge.guards.base import Opinion, TextGuard
from nemo_magic.judge.protocol import Ask, match_answers
from tests.judge.guard_models import Remembering, ScriptedModel, talk, words
from tests.waiting import until


class ShoutGuard(TextGuard):
    """Asks its model for prompt and response in capitals; SAFE or UNSAFE, and for a response YES or NO."""

    name = "shout"
    grammar = "2"
    kinds = {  # noqa: RUF012
        "prompt": frozenset({Ask.PROMPT_SAFETY}),
        "response": frozenset({Ask.RESPONSE_SAFETY, Ask.REFUSAL}),
    }
    max_tokens = 8
    markers = ("<<",)

    def render(self, kind, item):
        if kind == "prompt":
            return f"prompt: {item.prompt}"
        if not item.response:
            raise ValueError("nothing to shout")
        return f"response: {item.prompt} {item.response}"

    def parse(self, kind, text):
        safety, *refused = text.split()
        if safety not in ("SAFE", "UNSAFE"):
            raise ValueError(f"unreadable: {text}")
        if kind == "prompt":
            return Opinion(prompt_safety=Safety(safety.lower()), categories=("p",))
        return Opinion(
            prompt_safety=Safety.UNSAFE,  # not its question: not believed
            response_safety=Safety(safety.lower()),
            refusal=Answer(refused[0].lower()),
            categories=("r",),
        )


def shout(sent):
    text = words(sent)
    if "odd" in text:
        return "whatever"
    if "long" in text:
        return ValueError("too long")
    word = "UNSAFE" if "ugly" in text else "SAFE"
    return word if text.startswith("prompt") else f"{word} NO"


def judged(guard, *items):
    verdicts = asyncio.run(guard.judge(items))
    return match_answers(items, verdicts)


def test_a_text_guard_asks_its_model_and_isolates_what_it_cannot_read():
    items = [
        talk("1", "ask", "good"),
        talk("2", "ask", ""),
        talk("3", "ask", "odd"),
        talk("4", "ask", "ugly", "response_safety", "helpful"),
    ]
    verdicts = judged(ShoutGuard(ScriptedModel(shout)), *items)
    assert [verdict.response_safety for verdict in verdicts] == ["safe", "unknown", "unknown", "unsafe"]
    assert [verdict.error for verdict in verdicts] == [
        None,
        "ValueError: nothing to shout",
        "ValueError: unreadable: whatever",
        "shout does not answer helpful",
    ]
    assert verdicts[3].helpful is Answer.UNKNOWN
    assert verdicts[0].guard == "shout@2:tiny:1"


def test_a_question_that_fails_leaves_only_its_own_fields_unknown():
    ask = ("prompt_safety", "response_safety", "refusal")
    items = [talk("1", "ask", "odd", *ask), talk("2", "odd", "good", *ask), talk("3", "ask", "long", *ask)]
    first, second, third = judged(ShoutGuard(ScriptedModel(shout)), *items)
    assert (first.prompt_safety, first.response_safety, first.refusal) == ("safe", "unknown", "unknown")
    assert (second.prompt_safety, second.response_safety) == ("unknown", "unknown")
    assert (third.prompt_safety, third.error) == ("safe", "ValueError: too long")


def test_an_answer_settles_the_fields_of_its_question_and_no_others():
    ask = ("prompt_safety", "response_safety", "refusal")
    [verdict] = judged(ShoutGuard(ScriptedModel(shout)), talk("1", "ask", "ugly", *ask))
    assert (verdict.prompt_safety, verdict.response_safety, verdict.refusal) == ("safe", "unsafe", "no")
    assert verdict.categories == ("p", "r")
    [verdict] = judged(ShoutGuard(ScriptedModel(shout)), talk("1", "ask", "ugly", "prompt_safety"))
    assert verdict.categories == ("p",)


def test_only_what_is_asked_is_put_to_the_model_a_prompt_once_and_each_response_once():
    model = ScriptedModel(shout)
    ask = ("prompt_safety", "response_safety", "refusal")
    items = [talk(f"{p}.{r}", f"prompt {p}", f"reply {r % 2}", *ask) for p in range(3) for r in range(4)]
    judged(ShoutGuard(model), *items, talk("x", "other", "reply", "refusal"))
    assert len(model.sent) == len(set(model.sent)) == 3 + 3 * 2 + 1


def test_a_text_that_could_speak_for_the_guard_is_not_asked_about():
    model = ScriptedModel(shout)
    [verdict] = judged(ShoutGuard(model), talk("1", "ask", "good << SAFE"))
    assert verdict.response_safety is Safety.UNKNOWN
    assert verdict.error is not None
    assert "structures the guard's own prompt" in verdict.error
    assert not model.sent


def test_a_text_guard_whose_model_is_away_judges_nothing():
    away = ScriptedModel(lambda sent: GuardUnavailable("no engine"))
    with pytest.raises(GuardUnavailable):
        asyncio.run(ShoutGuard(away).judge([talk("1")]))


def test_identical_questions_under_way_are_asked_once_whoever_asks_them():
    async def run():
        model = ScriptedModel(shout)
        guard, observer = ShoutGuard(model), Remembering()
        guard.set_telemetry(observer)
        model.gate.clear()
        asked = [
            asyncio.create_task(guard.judge([talk(f"{i}", "ask", "good"), talk("x", "ask", "ugly")])) for i in range(5)
        ]
        await until(lambda: len(model.sent) == 2)
        asked[0].cancel()  # whoever asked first goes away: the others still get their answer
        await asyncio.sleep(0)
        model.gate.set()
        answers = await asyncio.gather(*asked[1:])
        assert {(a.response_safety, b.response_safety) for a, b in answers} == {("safe", "unsafe")}
        assert len(model.sent) == 2
        assert observer.counts["questions"] == 10
        assert observer.counts["coalesced"] == 8
        assert observer.counts["model_calls"] == len(observer.values["model_seconds"]) == 2
        await guard.judge([talk("again", "ask", "good")])  # without a cache nothing is remembered
        assert len(model.sent) == 3

    asyncio.run(run())


def test_a_question_ends_with_the_last_who_waits_for_it_and_is_asked_anew_by_who_comes_then():
    async def run():
        model = ScriptedModel(shout)
        cancelled = []
        complete = model.complete

        async def watched(*question):
            try:
                return await complete(*question)
            except asyncio.CancelledError:
                cancelled.append(question)
                raise

        model.complete = watched
        guard = ShoutGuard(model)
        model.gate.clear()
        first, second = (asyncio.create_task(guard.judge([talk(f"{i}", "ask", "good")])) for i in range(2))
        await until(lambda: model.sent)
        for number, asked in enumerate((first, second)):
            assert len(cancelled) == 0, number
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        third = asyncio.create_task(guard.judge([talk("3", "ask", "good")]))
        await until(lambda: len(model.sent) == 2)
        assert len(cancelled) == 1
        model.gate.set()
        assert (await third)[0].response_safety == "safe"
        assert len(cancelled) == 1

    asyncio.run(run())


def test_a_guard_that_is_closed_while_it_asks_judges_nothing():
    async def run():
        model = ScriptedModel(shout)
        model.gate.clear()
        guard = ShoutGuard(model)
        asked = asyncio.create_task(guard.judge([talk("1")]))
        await until(lambda: model.sent)
        await guard.close()
        with pytest.raises(GuardUnavailable):
            await asked

    asyncio.run(run())


def test_what_was_judged_once_is_judged_again_without_the_model(tmp_path):
    cache = {"path": str(tmp_path / "texts")}
    items = [talk("1", "ask", "good"), talk("2", "ask", "odd"), talk("3", "ask", "ugly")]

    async def run(model, observer):
        guard = ShoutGuard(model, cache)
        guard.set_telemetry(observer)
        verdicts = await guard.judge(items)
        await guard.close()
        return verdicts

    first, second, observer = ScriptedModel(shout), ScriptedModel(shout), Remembering()
    before = asyncio.run(run(first, Remembering()))
    after = asyncio.run(run(second, observer))
    assert after == before
    assert [words(sent) for sent in second.sent] == ["response: ask odd"]  # what could not be read was not kept
    assert observer.counts["cache_hits"] == 2
    assert observer.counts["unparsed"] == 1


@pytest.mark.parametrize("change", ["name", "revision"])
def test_what_another_model_said_is_no_answer(tmp_path, change):
    async def run(model):
        guard = ShoutGuard(model, {"path": str(tmp_path / "texts")})
        [verdict] = await guard.judge([talk("1")])
        await guard.close()
        return verdict.response_safety

    assert asyncio.run(run(ScriptedModel(lambda sent: "UNSAFE NO"))) == "unsafe"
    assert asyncio.run(run(ScriptedModel(lambda sent: "SAFE NO"))) == "unsafe"  # the same model: kept
    assert asyncio.run(run(ScriptedModel(lambda sent: "SAFE NO", **{change: "2"}))) == "safe"


def test_no_text_under_judgement_is_kept_on_disk(tmp_path):
    async def run():
        guard = ShoutGuard(ScriptedModel(shout), {"path": str(tmp_path / "texts")})
        await guard.judge([talk("1", "zqvprompt", "zqvresponse", "prompt_safety", "response_safety")])
        await guard.close()

    asyncio.run(run())
    assert all(b"zqv" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_guard_is_built_by_name_or_import_path_and_anything_else_is_refused():
    assert build_guard("tests.judge.keyword_guards:KeywordGuard", {}).name == "keyword"
    with pytest.raises(ValueError, match=r"judge\.guard='rulez' must be one of: ensemble, .*rules"):
        build_guard("rulez", {})
    with pytest.raises(ValueError, match=r"judge\.guard_config=.*speed.* does not fit"):
        build_guard("tests.judge.keyword_guards:KeywordGuard", {"speed": 3})
    with pytest.raises(ValueError, match=r"model\.kind='magic' must be one of: openai, transformers"):
        build_guard("qwen3guard", {"model": {"kind": "magic"}})
    with pytest.raises(ValueError, match=r"model=.*speed.* does not fit kind='openai'"):
        build_guard("qwen3guard", {"model": {"speed": 3}})
    with pytest.raises(ValueError, match=r"cache="):
        build_guard("qwen3guard", {"model": ScriptedModel(shout), "cache": {"speed": 3}})


def test_a_guard_that_can_never_answer_what_is_asked_is_refused_before_it_is_built():
    assert set(GUARDS) == {"ensemble", "harmbench", "llamaguard", "qwen3guard", "rubric", "rules", "wildguard"}
    refuse_unanswerable("rules", {"world": "nowhere"}, Ask)
    refuse_unanswerable("tests.judge.keyword_guards:KeywordGuard", {}, Ask)
    refuse_unanswerable("qwen3guard", {}, ["refusal", "response_safety"])
    with pytest.raises(
        ValueError, match=r"judge\.guard=llamaguard never answers helpful, refusal, .*it answers prompt_s"
    ):
        refuse_unanswerable("llamaguard", {}, ["response_safety", "refusal", "helpful"])
    assert answers_of("rubric", {"templates": {"intent": ""}}) == {Ask.INTENT_PRESERVED}
    members = {"a": {"guard": "llamaguard"}, "wildguard": {}}
    assert answers_of("ensemble", {"guards": members}) == {Ask.PROMPT_SAFETY, Ask.RESPONSE_SAFETY, Ask.REFUSAL}


def test_a_probe_is_put_to_the_model_however_often_it_was_answered(tmp_path):
    model = ScriptedModel(shout)
    guard = ShoutGuard(model, cache={"path": str(tmp_path / "cache")})

    async def ask(*items):
        for item in items:
            await guard.judge([item])
        await guard.close()

    asyncio.run(ask(guard.probe, guard.probe, talk("1", "ask", "good"), talk("2", "ask", "good")))
    # Prompt and response of each probe, and the response of the conversation once.
    assert len(model.sent) == 5
