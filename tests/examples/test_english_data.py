"""The house rule's world: what is held out stays out, and the project reads every file that the example writes."""

import json
import re

import make_data
import pytest
import world

from nemo_magic.data.pools import read_attack_pool, read_chat_pool
from nemo_magic.data.seeds import DataConfig, load_seeds
from nemo_magic.game.episode import Label


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("english")
    make_data.write(path)
    return path


def test_the_same_files_are_written_each_time(folder, tmp_path):
    make_data.write(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_seeds_are_read_whole_and_there_are_hundreds(folder):
    files = {split: [str(folder / f"seeds.{split}.jsonl")] for split in world.SPLITS}
    seeds = load_seeds(DataConfig(files["train"], files["val"], files["test"]))
    assert not seeds.report.dropped
    for label in Label:
        assert sum(seed.label is label for seed in seeds.train) >= 300
        assert sum(seed.label is label for seed in seeds.test) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("split", ["val", "test"])
def test_no_training_text_names_a_held_out_dish_or_activity(folder, split):
    training = " ".join((folder / name).read_text(encoding="utf-8").lower() for name in TRAINING)
    held_out = [*world.words("dishes", split), *world.words("howto", split)]
    assert [topic for topic in held_out if re.search(rf"\b{re.escape(topic)}\b", training)] == []


@pytest.mark.parametrize("kind", ["near", "general"])
def test_no_training_text_has_a_held_out_question(folder, kind):
    training = " ".join((folder / name).read_text(encoding="utf-8") for name in TRAINING)
    held_out = [topic[0] for split in ("val", "test") for topic in world.requests(kind, split)]
    assert [request.text for request in held_out if request.text in training or request.clause in training] == []


TRAINING = ("seeds.train.jsonl", "attack_pool.jsonl", "defender_pool.jsonl")


def test_the_attack_pool_has_ten_strategies_with_reasons_and_none_that_is_held_out(folder):
    rows, report = read_attack_pool(str(folder / "attack_pool.jsonl"))
    assert not report.dropped
    assert {row.strategy for row in rows} == {strategy.name for strategy in world.STRATEGIES}
    assert len(world.STRATEGIES) >= 10
    assert len(world.HELD_OUT) >= 5
    assert all(row.reasoning for row in rows)
    text = (folder / "attack_pool.jsonl").read_text(encoding="utf-8")
    beginnings = [template.split("{")[0].strip() for one in world.HELD_OUT for template in one.templates]
    assert [begin for begin in beginnings if begin and begin in text] == []


def test_every_template_says_what_is_asked():
    for strategy in (*world.STRATEGIES, *world.HELD_OUT):
        for template in strategy.templates:
            assert ("{ask}" in template) != ("{clause}" in template), template


def test_the_defender_is_shown_refusals_of_recipes_only(folder):
    rows, report = read_chat_pool(str(folder / "defender_pool.jsonl"))
    assert not report.dropped
    allowed = {
        text
        for kind in (world.HOWTO, world.NEAR, world.GENERAL)
        for topic in world.requests(kind, "train")
        for request in topic
        for text in (request.text, *(t for strategy in world.STRATEGIES for t in strategy.rewrites(request)))
    }
    refused = [row.messages[-1].content for row in rows if row.response in make_data.REFUSALS]
    assert refused
    assert [prompt for prompt in refused if prompt in allowed] == []


def test_answers_are_those_to_training_requests():
    known = {r.id: r.text for kind in world.KINDS for topic in world.requests(kind, "train") for r in topic}
    for line in make_data.ANSWERS.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert known[row["id"]] == row["prompt"]
