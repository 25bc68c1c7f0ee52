"""One model three ways (Megatron at TP2, transformers, its server), and lm-evaluation-harness against that server."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.evaluation.harness_tasks import CASES, write_tasks
from tests.evaluation.served_world import POSITIONS, Evaluated, LlamaServer, ServedWorld, Server, evaluated

pytestmark = pytest.mark.process

Post = Callable[..., httpx.Response]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> ServedWorld:
    return ServedWorld(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(world: ServedWorld) -> Iterator[Server]:
    served = Server(world.words("serve", "serve.port=0"))
    yield served
    served.signal()
    served.ended()


@pytest.fixture(scope="module")
def post(server: Server) -> Iterator[Post]:
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        yield lambda path, **body: client.post(path, json={"model": "defender"} | body)


@pytest.fixture(scope="module")
def model(world: ServedWorld) -> Any:
    """The same weights, by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(world.hf)


# --- one table


@pytest.fixture(scope="module")
def megatron(world: ServedWorld) -> Evaluated:
    return evaluated(world, "megatron")


def test_transformers_gives_the_same_answers_and_the_same_table(world: ServedWorld, megatron: Evaluated) -> None:
    assert len(megatron.said) == 40 + 8
    assert len({answer for turns in megatron.said.values() for _, answer in turns}) > 20
    assert {figure["figure"] for figure in megatron.figures if 0 < figure["rate"] < 1}, "the figures tell nothing"
    # A folder of transformers' is told by what is in it.
    hf = evaluated(world, "transformers", f"actors.defender.restore_from_path={world.hf}", "trainer.devices=1")
    assert hf == megatron


def test_a_server_of_somebody_elses_gives_the_same_answers_and_the_same_table(
    world: ServedWorld, megatron: Evaluated
) -> None:
    llama = LlamaServer(world.gguf, "tiny")
    try:
        there = [f"actors.defender.remote.urls=[{llama.url}]", "actors.defender.remote.model=tiny"]
        assert evaluated(world, "llama", "actors.defender.restore_from_path=null", *there) == megatron
    finally:
        llama.close()


def test_the_served_model_gives_the_same_answers_and_the_same_table(
    world: ServedWorld, megatron: Evaluated, server: Server
) -> None:
    there = [f"actors.defender.remote.urls=[{server.url}]", "actors.defender.remote.model=defender"]
    assert evaluated(world, "endpoint", "actors.defender.restore_from_path=null", *there) == megatron


# --- lm-evaluation-harness


@dataclass(frozen=True)
class Harness:
    """What the harness said: rates by task and metric, and each case's responses."""

    printed: str
    rates: dict[tuple[str, str], float]
    responses: dict[str, list[Any]]


TASKS = {
    "choice": {"task": "made_up_choice", "metric": "'acc_norm,none'"},
    "reply": {"task": "made_up_reply", "metric": "'exact_match,stripped'", "how": "chat"},
}


@pytest.fixture(scope="module")
def tasks(world: ServedWorld) -> Path:
    return write_tasks(world)


@pytest.fixture(scope="module")
def harness(world: ServedWorld, server: Server, tasks: Path) -> Harness:
    """``nemo-magic capability --run`` against the served model."""
    folder = world.home / "capability"
    printed = world.run(
        *world.words(
            "capability", "--run", f"eval.capability.url={server.url}", f"eval.capability.tokenizer={world.hf}",
            f"eval.capability.include_path={tasks}", f"eval.capability.max_length={POSITIONS}",
            "eval.capability.num_concurrent=4", "eval.capability.batch_size=3",
            f"eval.capability.tasks={tasks_given()}", f"exp_manager.explicit_log_dir={folder}",
        )
    )  # fmt: skip
    found = [json.loads(path.read_text())["results"] for path in folder.rglob("results*.json")]
    rates = {
        (task, metric): value
        for results in found
        for task, figures in results.items()
        for metric, value in figures.items()
    }
    samples = [json.loads(line) for path in folder.rglob("samples*.jsonl") for line in path.read_text().splitlines()]
    assert len(samples) == 2 * CASES
    responses = {
        f"made_up_{name}": [s["resps"] for s in sorted(samples, key=lambda s: s["doc_id"]) if kind(s) == name]
        for name in TASKS
    }
    return Harness(printed, rates, responses)


def tasks_given() -> str:
    """TASKS as an override."""
    each = (
        f"{name}: {{{', '.join(f'{key}: {value}' for key, value in task.items())}}}" for name, task in TASKS.items()
    )
    return "{" + ", ".join(each) + "}"


def kind(sample: dict[str, Any]) -> str:
    return "choice" if "choices" in sample["doc"] else "reply"


def test_the_harness_receives_the_models_own_log_likelihoods(
    world: ServedWorld, model: Any, harness: Harness, tasks: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world.hf)
    rows = [json.loads(line) for line in (tasks / "made_up_choice.jsonl").read_text().splitlines()]
    worst, greedy = 0.0, []
    for row, responses in zip(rows, harness.responses["made_up_choice"], strict=True):
        for choice, [[logprob, is_greedy]] in zip(row["choices"], responses, strict=True):
            context, ids = (tokenizer(text)["input_ids"] for text in (row["question"], f"{row['question']} {choice}"))
            with torch.no_grad():
                scores = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
            said = range(len(context), len(ids))
            worst = max(worst, abs(float(logprob) - sum(scores[i - 1, ids[i]].item() for i in said)))
            greedy.append((str(is_greedy), str(all(scores[i - 1].argmax().item() == ids[i] for i in said))))
    assert worst < 1e-4
    assert all(told == true for told, true in greedy)
    assert len(set(greedy)) == 2


@pytest.fixture(scope="module")
def independent(world: ServedWorld, tasks: Path) -> dict[str, Any]:
    """The harness with its own transformers model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments = {"pretrained": str(world.hf), "dtype": "float32"}
    found: dict[str, Any] = {"results": {}, "samples": {}}
    for task, template in (("made_up_choice", False), ("made_up_reply", True)):
        ran = lm_eval.simple_evaluate(
            "hf", model_args=arguments, tasks=[task], task_manager=manager, device="cpu", batch_size=4,
            apply_chat_template=template,
        )  # fmt: skip
        for part in found:
            found[part] |= ran[part]
    return found


def test_the_harness_with_a_transformers_model_of_its_own_finds_the_same(
    harness: Harness, independent: dict[str, Any]
) -> None:
    for task, metric in (
        ("made_up_choice", "acc,none"),
        ("made_up_choice", "acc_norm,none"),
        ("made_up_reply", "exact_match,stripped"),
    ):
        assert harness.rates[task, metric] == independent["results"][task][metric]
    assert harness.rates["made_up_reply", "exact_match,stripped"] == 0.5
    assert 0 < harness.rates["made_up_choice", "acc_norm,none"] < 1
    theirs = [sample["resps"] for sample in sorted(independent["samples"]["made_up_reply"], key=lambda s: s["doc_id"])]
    assert harness.responses["made_up_reply"] == theirs


def test_what_the_harness_found_is_told_and_stands_beside_an_evaluations_figures(
    world: ServedWorld, harness: Harness, server: Server
) -> None:
    rate = f"{100 * harness.rates['made_up_choice', 'acc_norm,none']:.1f}"
    row = re.compile(rf"^\| choice \| made_up_choice acc_norm \| {rate} \| \d+\.\d \| {CASES} \| 0 \|$", re.MULTILINE)
    assert row.search(harness.printed)
    folder = world.home / "with_capability"
    there = [f"actors.defender.remote.urls=[{server.url}]", "actors.defender.remote.model=defender"]
    found = [
        f"eval.capability.results={world.home / 'capability' / 'lm_eval'}",
        f"eval.capability.tasks={tasks_given()}",
    ]
    only = ["eval.tasks.validation.file=null", "eval.tasks.test.limit=2", "actors.defender.restore_from_path=null"]
    world.run(*world.words("evaluate", f"exp_manager.explicit_log_dir={folder}", *only, *there, *found))
    assert row.search((folder / "results.md").read_text())
    [choice, reply] = json.loads((folder / "results.json").read_text())["capability"]
    assert choice["value"] == harness.rates["made_up_choice", "acc_norm,none"]
    assert reply | {"stderr": None} == {
        "name": "reply", "task": "made_up_reply", "metric": "exact_match,stripped", "value": 0.5, "stderr": None,
        "cases": CASES, "shots": 0, "published": None,
    }  # fmt: skip


# --- the server


def test_a_prompts_log_probabilities_come_with_the_places_of_its_tokens(
    model: Any, world: ServedWorld, post: Post
) -> None:
    text = "bring  : so li"
    [choice] = post("/completions", prompt=text, max_tokens=0, echo=True, logprobs=3).json()["choices"]
    told = choice["logprobs"]
    assert choice["text"] == text
    places = zip(told["text_offset"], told["tokens"], strict=True)
    assert [text[at : at + len(token)] for at, token in places] == told["tokens"]
    assert "".join(told["tokens"]) == text
    ids = AutoTokenizer.from_pretrained(world.hf)(text)["input_ids"]
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=-1)
    own = [scores[i - 1, ids[i]].item() for i in range(1, len(ids))]
    assert told["token_logprobs"] == [None, *(pytest.approx(value, abs=1e-4) for value in own)]
    best = [sorted(row.topk(3).values.tolist()) for row in scores[:-1]]
    for likeliest, expected in zip(told["top_logprobs"][1:], best, strict=True):
        assert sorted(likeliest.values())[-3:] == pytest.approx(expected, abs=1e-4)
    assert told["top_logprobs"][0] is None


def test_a_scored_prompt_is_continued_by_the_token_that_decoding_would_say(post: Post) -> None:
    prompts = ["bring : so li", "here is", "tell", "so"]
    asks = {"prompt": prompts, "temperature": 0, "logprobs": 1}
    decoded = post("/completions", **asks, max_tokens=2).json()["choices"]
    scored = post("/completions", **asks, max_tokens=1, echo=True).json()["choices"]
    for long, short, prompt in zip(decoded, scored, prompts, strict=True):
        assert short["text"].startswith(prompt)
        assert short["logprobs"]["tokens"][-1] == long["logprobs"]["tokens"][0]
        last = short["logprobs"]["token_logprobs"][-1]
        assert last == pytest.approx(long["logprobs"]["token_logprobs"][0], abs=1e-4)
        assert list(short["logprobs"]["top_logprobs"][-1].values()) == [last]


def test_a_sample_depends_on_its_own_seed_and_not_on_who_asks_beside_it(post: Post) -> None:
    asks = {"prompt": "bring : so li", "max_tokens": 12, "temperature": 1.0}
    alone = {seed: post("/completions", **asks, seed=seed).json()["choices"][0]["text"] for seed in range(6)}
    assert len(set(alone.values())) > 1
    with ThreadPoolExecutor(6) as pool:
        beside = dict(
            zip(range(6), pool.map(lambda seed: post("/completions", **asks, seed=seed), range(6)), strict=True)
        )
    assert {seed: answer.json()["choices"][0]["text"] for seed, answer in beside.items()} == alone


def test_an_answer_ends_where_a_stop_string_begins(post: Post) -> None:
    asks = {"messages": [{"role": "user", "content": "bring : so li"}], "max_tokens": 12, "temperature": 0}
    whole = post("/chat/completions", **asks).json()["choices"][0]["message"]["content"]
    words = whole.split()
    [choice] = post("/chat/completions", **asks, stop=[" ".join(words[1:3])]).json()["choices"]
    assert (choice["message"]["content"].strip(), choice["finish_reason"]) == (words[0], "stop")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/completions", {"prompt": "so", "model": "other"}, 404, "model"),
        ("/completions", {}, 400, "prompt"),
        ("/completions", {"prompt": []}, 400, "prompt"),
        ("/completions", {"prompt": [1, 999]}, 400, "prompt"),
        ("/completions", {"prompt": "so " * POSITIONS}, 400, "prompt"),
        ("/completions", {"prompt": "so", "max_tokens": POSITIONS}, 400, "max_tokens"),
        ("/completions", {"prompt": "so", "max_tokens": "3"}, 400, "max_tokens"),
        ("/completions", {"prompt": "so", "temperature": 3}, 400, "temperature"),
        ("/completions", {"prompt": "so", "stop": [""]}, 400, "stop"),
        ("/completions", {"prompt": "so", "frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ("/completions", {"prompt": "so", "n": 0}, 400, "n"),
        ("/completions", {"prompt": "so", "max_token": 2}, 400, "max_token"),
        ("/completions", {"prompt": ["so"] * 1000}, 413, "prompt"),
        ("/chat/completions", {"messages": []}, 400, "messages"),
        ("/chat/completions", {"messages": [{"role": "tool", "content": "so"}]}, 400, "messages"),
        (
            "/chat/completions",
            {"messages": [{"role": "user", "content": "so"}], "top_logprobs": 2},
            400,
            "top_logprobs",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_by_the_name_of_its_field(
    post: Post, path: str, body: dict[str, Any], status: int, param: str
) -> None:
    answer = post(path, **body)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["message"].startswith(param)


def test_a_stream_and_several_answers_are_what_whole_and_single_answers_are(post: Post) -> None:
    asks = {"messages": [{"role": "user", "content": "bring : so li"}], "max_tokens": 12, "temperature": 1.0}
    single = [
        post("/chat/completions", **asks, seed=seed).json()["choices"][0]["message"]["content"] for seed in (5, 6, 7)
    ]
    several = post("/chat/completions", **asks, seed=5, n=3).json()["choices"]
    assert [choice["message"]["content"] for choice in several] == single
    streamed = dict.fromkeys(range(3), "")
    events = post("/chat/completions", **asks, seed=5, n=3, stream=True).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        [choice] = json.loads(event.removeprefix("data: "))["choices"]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert list(streamed.values()) == single


def test_a_message_that_spells_a_turns_end_is_answered_as_text_and_counted(post: Post) -> None:
    def ask(content: str) -> httpx.Response:
        return post("/chat/completions", messages=[{"role": "user", "content": content}], max_tokens=1)

    answer = ask("so <|end|> so")
    assert answer.headers["X-Neutralised-Tokens"] == "1"
    assert answer.json()["usage"]["prompt_tokens"] > ask("so  so").json()["usage"]["prompt_tokens"] + 1
    assert "X-Neutralised-Tokens" not in ask("so end so").headers


def test_a_server_that_is_asked_to_end_answers_those_who_wait_and_no_others(world: ServedWorld, server: Server) -> None:
    # The last test of the module: it ends the server that all share.
    body = {"model": "defender", "prompt": ["bring : so li"] * 200, "max_tokens": 80, "temperature": 1}
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client, ThreadPoolExecutor(4) as pool:
        ready = server.url.removesuffix("/v1") + "/readyz"
        assert client.get(ready).status_code == 200
        waiting = [pool.submit(client.post, "/completions", json=body) for _ in range(4)]
        assert not wait(waiting, timeout=0.2).done, "answered too soon to prove anything"
        server.signal()
        while client.get(ready).status_code == 200:
            pass
        late = client.post("/completions", json=body | {"prompt": "so"})
        assert (late.status_code, late.json()["error"]["message"]) == (503, "the server ends")
        assert [len(answer.result().json()["choices"]) for answer in waiting] == [200] * 4
    assert server.ended() == 0
