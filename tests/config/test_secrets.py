"""Passwords in urls, values of the environment and secret keys are in nothing that is saved, printed or sent."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic import cli
from nemo_magic.config import compose, save_resolved, to_yaml
from nemo_magic.config.secrets import mask_text, masked
from nemo_magic.config.validation import models
from nemo_magic.fsync_io import private_folder
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.runtime.resume import differences, may_differ

SECRET = "s3cr3t-Of-Mine"
PLACES = {
    "judge": ["judge.launch=false", f"judge.urls=['http://me:{SECRET}@judge:1/']"],
    "no password": ["judge.launch=false", f"judge.urls=['https://{SECRET}@judge:1/']"],
    "query": ["judge.launch=false", f"judge.urls=['https://judge:1/score?api_key={SECRET}&x=1']"],
    "environment": ["judge.launch=false", "judge.urls=['http://judge:1/${oc.env:MINE}']"],
    "by way of": ["name=${oc.env:MINE}", "exp_manager.explicit_log_dir=runs/${name}"],
    "untyped": ["judge.guard_config={world: x, headers: {x-own: '${oc.env:MINE}'}}"],
    "in a list": ["data.train_files=['${oc.env:MINE}']"],
    "key": [f"judge.guard_config={{world: x, api_key: {SECRET}, password: {SECRET}, nested: {{token: {SECRET}}}}}"],
    "remote": [f"actors.attacker.remote.urls=['http://me:{SECRET}@there:1/v1']", "actors.attacker.remote.model=m",
               "actors.attacker.restore_from_path=null", "game.schedule.train_roles=[defender]"],
    "wandb": [f"exp_manager.wandb_logger_kwargs.project='https://x:{SECRET}@host'"],
}  # fmt: skip


@pytest.mark.process
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_in_nothing_that_leaves_the_process(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINE", SECRET)
    words = [f"exp_manager.explicit_log_dir={tmp_path / 'run'}", *PLACES[place]]
    cfg = compose("magic_sandbox", words, command="judge")
    save_resolved(cfg, tmp_path / "run")
    cli.main(["judge", "-cn", "magic_sandbox", "--dry-run", *words])
    out = capsys.readouterr().out
    for text in (out, (tmp_path / "run" / "config.yaml").read_text(), json.dumps(masked(cfg))):
        assert SECRET not in text
        assert "***" in text or "${oc.env:MINE}" in text


def test_a_dry_runs_description_has_no_secret_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINE", SECRET)
    words = ["name=${oc.env:MINE}", "judge.launch=false", f"judge.urls=['http://me:{SECRET}@judge:1']"]
    assert cli.main(["train", "-cn", "magic_sandbox", "--dry-run", *words]) == 0
    assert SECRET not in capsys.readouterr().out


def test_a_saved_reference_to_the_environment_composes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", SECRET)
    cfg = compose("magic_sandbox", PLACES["environment"])
    assert cfg.judge.urls == [f"http://judge:1/{SECRET}"]
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert compose("config", [], str(tmp_path)).judge.urls == cfg.judge.urls
    assert list(differences(masked(cfg), masked(compose("config", [], str(tmp_path))), may_differ("train"))) == []
    assert models(cfg, "train")


def test_paths_of_the_environment_stay_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs read them in a run's folder."""
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    words = ["sandbox.folder=${oc.env:SCRATCH}/sandbox", "exp_manager.explicit_log_dir=${oc.env:SCRATCH}/run"]
    saved: dict[str, Any] = yaml.safe_load(to_yaml(compose("magic_sandbox", words)))
    assert saved["sandbox"]["folder"] == f"{tmp_path}/sandbox"
    assert saved["model"]["tokenizer"]["type"] == f"{tmp_path}/sandbox/tokenizer"
    assert saved["exp_manager"]["explicit_log_dir"] == f"{tmp_path}/run"


@pytest.mark.parametrize("url", ["http://***@judge:1", "http://judge:1?token=***"])
def test_a_masked_url_is_not_asked(url: str) -> None:
    with pytest.raises(ValueError, match="was masked when the configuration was saved; give the url again"):
        JudgeConfig(urls=[url]).token()


WORD = st.from_regex(r"[A-Za-z0-9%._~!$&+,;=-]{6,12}", fullmatch=True)


@pytest.mark.slow
@given(WORD, WORD, st.sampled_from(["http", "https", "HTTPS", "grpc+tls", "postgres"]), st.booleans())
def test_no_password_of_any_url_comes_through(user: str, password: str, scheme: str, alone: bool) -> None:
    userinfo = password if alone else f"{user}:{password}"
    for text in (f"{scheme}://{userinfo}@host:80/v1", f"judge at {scheme}://{userinfo}@h, then more"):
        assert f"{password}@" not in mask_text(text)
        assert f"{scheme}://***@h" in mask_text(text)


@given(st.from_regex(r"https?://[a-z.]{1,9}(:[0-9]{2,4})?(/[a-z@]{1,9})?(\?[a-z]=[a-z]{1,4})?", fullmatch=True))
def test_what_holds_no_secret_is_not_changed(url: str) -> None:
    for text in (url, f"see {url} or me@example.invalid"):
        assert mask_text(text) == text


@pytest.mark.process
def test_a_run_folder_is_its_owners_or_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = compose("magic_sandbox")
    save_resolved(cfg, tmp_path / "new" / "run")
    assert stat.S_IMODE((tmp_path / "new" / "run").stat().st_mode) == 0o700
    assert capsys.readouterr().err == ""
    (tmp_path / "old").mkdir()
    (tmp_path / "old").chmod(0o755)
    save_resolved(cfg, tmp_path / "old")
    assert "old can be read by others (mode 0755): it was there before" in capsys.readouterr().err
    assert private_folder(tmp_path / "new" / "run") is None


def test_what_nemo_gets_is_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "org/tokenizer")
    words = ["model.tokenizer.type=${oc.env:MINE}", "actors.attacker.model={tokenizer: {type: '${oc.env:MINE}'}}"]
    cfg = compose("magic_sandbox", words)
    assert type(cfg.model.tokenizer.type) is str
    assert all(model.tokenizer.type == "org/tokenizer" for model in models(cfg, "train").values())
