import os
import signal
from dataclasses import replace

import httpx
import pytest

from nemo_magic.judge.config import JudgeConfig, JudgeServerConfig
from nemo_magic.judge.errors import JudgeUnavailable
from nemo_magic.judge.local import launch_local
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def test_a_local_judge_is_ready_when_launched_and_gone_when_closed(quick, tmp_path):
    with launch_local(quick, log=tmp_path / "logs" / "judge.log") as local:
        assert httpx.get(f"{local.url}/readyz", trust_env=False).json()["guard"] == "keyword@1"
        assert local.config.urls == [local.url]
        pid = local.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "tests.judge.keyword_guards:KeywordGuard" in (tmp_path / "logs" / "judge.log").read_text()


def test_a_local_judge_that_died_comes_back_at_its_address(quick):
    with launch_local(quick) as local:
        first = local.pid
        os.kill(first, signal.SIGKILL)

        def back() -> bool:
            try:
                return local.pid != first and httpx.get(f"{local.url}/readyz", trust_env=False).status_code == 200
            except httpx.HTTPError:
                return False

        wait_for(back)


@pytest.mark.parametrize(
    ("guard", "reason"),
    [("tests.judge.keyword_guards:BrokenStartGuard", "no weights here"), ("qwen", "must be one of: ensemble")],
)
def test_a_local_judge_that_cannot_start_says_why(quick, guard, reason):
    with pytest.raises(JudgeUnavailable, match=reason):
        launch_local(replace(quick, guard=guard))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"urls": ["localhost:80"]}, r"judge\.urls='localhost:80' must start with one of"),
        ({"urls": ["http://a"], "launch": True}, r"judge\.launch .* must be empty"),
        ({"batch_size": 0}, r"judge\.batch_size=0"),
        ({"give_up_after": 0}, r"judge\.give_up_after=0"),
        ({"max_unknown_share": 1.5}, r"judge\.max_unknown_share=1\.5"),
        ({"protocol_retries": -1}, r"judge\.protocol_retries=-1"),
    ],
)
def test_an_impossible_setting_is_refused_by_name(keys, message):
    with pytest.raises(ValueError, match=message):
        JudgeConfig(**keys)


@pytest.mark.parametrize("keys", [{"port": 70000}, {"max_items": 0}, {"drain_timeout": -1}])
def test_an_impossible_server_setting_is_refused_by_name(keys):
    with pytest.raises(ValueError, match=f"judge.server.{next(iter(keys))}"):
        JudgeServerConfig(**keys)
