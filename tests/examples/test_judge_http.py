"""The example judge behind HTTP passes the check of the protocol, as it stands."""

import importlib.util
from pathlib import Path

import pytest

from nemo_magic.cli import main
from tests.judge.serving import serving

FILE = Path(__file__).resolve().parents[2] / "examples" / "judge_http" / "judge.py"


@pytest.fixture
def app():
    spec = importlib.util.spec_from_file_location("judge_http_example", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


def test_it_has_at_most_forty_lines_and_passes_with_a_token_and_without(app, monkeypatch, capsys):
    assert len([line for line in FILE.read_text(encoding="utf-8").splitlines() if line.strip()]) <= 40
    monkeypatch.delenv("JUDGE_TOKEN", raising=False)
    with serving(app) as http:
        assert main(["judge-check", "--protocol", str(http.base_url)]) == 0
        without = capsys.readouterr().out
        monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
        assert main(["judge-check", "--protocol", str(http.base_url), "--token-env", "JUDGE_TOKEN"]) == 0
        assert main(["judge-check", "--protocol", str(http.base_url)]) == 1
    assert "prices@1 answers refusal, response_safety" in without
    assert "refused: /v1/judge with a wrong token (401)" in capsys.readouterr().out
