"""What may be set about a role that a server plays."""

from __future__ import annotations

import pytest

from nemo_magic.actors.config import RemoteConfig
from nemo_magic.config import ConfigError, compose


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"urls": ["127.0.0.1:8000/v1"]}, "remote.urls='127.0.0.1:8000/v1' must be a base url"),
        ({"urls": ["http://host:8000"]}, "must be a base url such as http://host:8000/v1"),
        ({"urls": ["http://host/v1/chat/completions"]}, "must end before /chat/completions"),
        ({"max_concurrency": 0}, "remote.max_concurrency=0 must be at least 1"),
        ({"give_up_after": 0}, "remote.give_up_after=0 must be greater than 0"),
        ({"protocol_retries": -1}, "remote.protocol_retries=-1 must be at least 0"),
        ({"extra_body": {"messages": []}}, "remote.extra_body.messages=.* cannot be set here"),
        ({"extra_body": {"seed": 3}}, "remote.extra_body.seed=3 may only be null"),
    ],
)
def test_a_wrong_value_is_refused_by_name(wrong, named):
    with pytest.raises(ValueError, match=named):
        RemoteConfig(**wrong)


PLAYED = (
    "actors.attacker.remote.urls=[http://127.0.0.1:8000/v1]",
    "actors.attacker.remote.model=tiny",
    "actors.attacker.restore_from_path=null",
    "game.schedule.train_roles=[defender]",
)


def test_a_role_that_a_server_plays_may_write_more_than_the_local_model_holds():
    cfg = compose("magic_sandbox", [*PLAYED, "actors.attacker.length_params.max_length=4096"])
    assert cfg.actors.attacker.is_remote
    assert not cfg.actors.defender.is_remote


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("game.schedule.train_roles=[attacker,defender]", "set game.schedule.train_roles=[defender]"),
        ("actors.attacker.remote.model=null", "actors.attacker.remote.model has to be given"),
        ("actors.attacker.restore_from_path=/w", "set actors.attacker.restore_from_path=null, which is /w"),
        ("actors.defender.remote.urls=[http://127.0.0.1:1/v1]", "one role has to be local"),
        ("actors.attacker.sampling_params.top_k=9", "actors.attacker.remote.extra_body.top_k=9"),
        ("actors.attacker.length_params.min_length=2", "actors.attacker.length_params.min_length=2, set it to 1"),
    ],
)
def test_what_a_server_cannot_play_is_refused_before_the_run(override, problem):
    with pytest.raises(ConfigError) as caught:
        compose("magic_sandbox", [*PLAYED, override])
    (found,) = str(caught.value).splitlines()
    assert "actors.attacker.remote.urls" in found
    assert problem in found
