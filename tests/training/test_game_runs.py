"""The whole program as a user runs it: warm-up, the game at several layouts, and a judge that dies in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nemo_magic.judge.config import JudgeConfig
from nemo_magic.report.records import read_records

MINUTES = 60


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "nemo_magic.cli", *words]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words), capture_output=True, text=True, timeout=8 * MINUTES, check=False, env=environment()
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small sandbox and both roles warmed up for a few steps on two ranks."""
    home = tmp_path_factory.mktemp("game")
    small = [f"sandbox.folder={home / 'sandbox'}", "sandbox.attack_rows=400", "sandbox.defender_rows=400"]
    run("sandbox", "-cn", "magic_sandbox", *small)
    for role in ("attacker", "defender"):
        run(
            "sft", "-cn", f"sft_sandbox_{role}", *small, f"exp_manager.explicit_log_dir={home / role}",
            "sft.max_steps=40", "sft.batch_size=64",
        )  # fmt: skip
    return home


def game(home: Path, name: str, *overrides: str) -> list[str]:
    """The arguments of a game of four rounds that starts from the warmed-up pair."""
    return [
        "train", "-cn", "magic_sandbox", f"name={name}", f"exp_manager.explicit_log_dir={home / name}",
        f"sandbox.folder={home / 'sandbox'}", "sandbox.attack_rows=400", "sandbox.defender_rows=400",
        f"actors.attacker.restore_from_path={home / 'attacker' / 'weights'}",
        f"actors.defender.restore_from_path={home / 'defender' / 'weights'}",
        "game.max_steps=4", "game.schedule.freq=2", "game.batch_size=8", "game.val_check_interval=2",
        "game.crossplay.num_seeds=20", *overrides,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def played(home: Path) -> Path:
    run(*game(home, "dp2"))
    return home / "dp2"


def figures(folder: Path, step: int) -> dict[str, float]:
    """What was sampled and judged in a step; nothing that depends on speed."""
    record = next(r for r in read_records(folder / "metrics.jsonl") if r.step == step)
    return {k: v for k, v in record.metrics.items() if k.startswith(("train_rollouts/", "val_rollouts/"))}


def test_warm_up_learns(home: Path) -> None:
    for role in ("attacker", "defender"):
        losses = [r.metrics["train_optim/loss"] for r in read_records(home / role / "metrics.jsonl")]
        assert len(losses) == 40
        assert losses[-1] < losses[0] / 2


def test_warmed_up_weights_are_never_written_over(home: Path) -> None:
    done = subprocess.run(
        command("sft", "-cn", "sft_sandbox_attacker", f"exp_manager.explicit_log_dir={home / 'attacker'}",
                f"sandbox.folder={home / 'sandbox'}", "trainer.devices=1"),
        capture_output=True, text=True, timeout=2 * MINUTES, check=False, env=environment(),
    )  # fmt: skip
    assert done.returncode != 0
    assert "already holds weights" in done.stderr


def test_phases_are_exactly_as_long_as_the_schedule_says(played: Path) -> None:
    records = read_records(played / "metrics.jsonl")
    assert [r.step for r in records] == [0, 1, 2, 3, 4]
    assert [r.learner for r in records] == [None, "defender", "defender", "attacker", "attacker"]
    assert [r.phase_index for r in records[1:]] == [0, 0, 1, 1]


def test_every_step_is_judged_and_measured(played: Path) -> None:
    for record in read_records(played / "metrics.jsonl")[1:]:
        assert record.metrics["train_rollouts/unknown_share"] == 0
        for name in ("asr", "over_refusal", "useful", "intent_preserved", "format_ok", "reward_harm_defender"):
            assert f"train_rollouts/{name}" in record.metrics
        assert record.metrics["throughput/tokens_per_second"] > 0
        assert record.metrics["train_optim/live_rows"] > 0
        assert record.metrics["train_optim/ratio"] == pytest.approx(1.0)  # a single minibatch is on-policy
    validated = [r.step for r in read_records(played / "metrics.jsonl") if "val_rollouts/asr" in r.metrics]
    assert validated == [0, 2, 4]


def test_a_run_leaves_its_picture_its_matrix_and_what_it_was(played: Path) -> None:
    assert (played / "game.png").read_bytes().startswith(b"\x89PNG")
    matrix = json.loads((played / "crossplay.json").read_text())
    assert matrix["attackers"] == ["no rewrite", "start", "phase-01"]
    assert matrix["defenders"] == ["start", "phase-00"]
    probe = json.loads((played / "strategies.json").read_text())
    assert len(probe["end"]["asr"]) == 37
    assert probe["end"]["worst"] == max(probe["end"]["asr"].values())
    assert list(played.glob("snapshots/*/*/metadata.json"))
    saved = {p.name for p in played.iterdir()}
    assert {"config.yaml", "versions.json"} <= saved, saved
    sample = json.loads(next((played / "samples").iterdir()).read_text().splitlines()[0])
    assert sample["seed"]


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("tp2", ["model.tensor_model_parallel_size=2"]),
        ("pp2", ["model.pipeline_model_parallel_size=2", "model.num_layers=4"]),
    ],
)
def test_the_same_game_is_played_at_another_layout(home: Path, played: Path, name: str, layout: list[str]) -> None:
    if name == "pp2":
        # Three layers do not split in two; the game still has to run through, from fresh weights of four layers.
        layout += ["actors.attacker.restore_from_path=null", "actors.defender.restore_from_path=null"]
    run(*game(home, name, *layout, "grpo.minibatches=2", "grpo.kl_beta=0.01"))
    assert (home / name / "game.png").exists()
    if name == "tp2":
        # Samples depend on the weights and on who they are, not on how many ranks share them.
        assert figures(home / name, 0) == pytest.approx(figures(played, 0), abs=1e-9)
        assert figures(home / name, 1) == pytest.approx(figures(played, 1), abs=1e-9)


def test_training_waits_for_a_judge_that_dies_and_goes_on_when_it_returns(home: Path, tmp_path: Path) -> None:
    config = JudgeConfig(guard="rules", guard_config={"world": str(home / "sandbox" / "world.json")})
    (tmp_path / "judge.json").write_text(json.dumps(asdict(config)))
    judge, port = start_judge(tmp_path, 0)
    arguments = game(
        home, "outage", "judge.launch=false", f'judge.urls=["http://127.0.0.1:{port}"]', "game.max_steps=10"
    )
    folder = home / "outage"
    with subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    ) as training:
        try:
            wait_until(lambda: steps(folder) >= 3)
            judge.send_signal(signal.SIGKILL)
            judge.wait()
            time.sleep(2)  # what was under way when it died is recorded by now
            stalled = steps(folder)
            time.sleep(4)
            assert steps(folder) == stalled < 10
            assert training.poll() is None
            judge, _ = start_judge(tmp_path, port)
            output, _ = training.communicate(timeout=4 * MINUTES)
        finally:
            training.kill()
            judge.kill()
            judge.wait()
    assert training.returncode == 0, output[-5000:]
    records = read_records(folder / "metrics.jsonl")
    assert [r.step for r in records] == list(range(11))
    assert all(r.metrics["train_rollouts/unknown_share"] == 0 for r in records[1:])


def test_a_judge_that_stays_away_ends_the_run_on_every_rank(home: Path) -> None:
    arguments = game(home, "gone", "judge.launch=false", 'judge.urls=["http://127.0.0.1:9"]', "judge.give_up_after=2")
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=2 * MINUTES, check=False, env=environment()
    )
    assert done.returncode != 0
    assert "JudgeUnavailable" in done.stderr + done.stdout


def start_judge(folder: Path, port: int) -> tuple[subprocess.Popen[bytes], int]:
    config = json.loads((folder / "judge.json").read_text())
    config["server"]["port"] = port
    (folder / "judge.json").write_text(json.dumps(config))
    port_file = folder / "port"
    port_file.unlink(missing_ok=True)
    words = ["-m", "nemo_magic.judge.server", "--config", str(folder / "judge.json"), "--port-file", str(port_file)]
    process = subprocess.Popen([sys.executable, *words, "--parent-pid", str(os.getpid())], env=environment())
    wait_until(port_file.exists)
    return process, int(port_file.read_text())


def steps(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_until(condition: Any, timeout: float = 2 * MINUTES) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)
