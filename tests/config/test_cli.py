"""The command line: what it prints, what it returns, what it starts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import Listener, arbitrary_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nemo_magic import cli, commands, launcher
from nemo_magic.child_processes import refuse_long_temporary_folder
from nemo_magic.commands import ranks
from nemo_magic.config import ConfigError, TrainerConfig, compose, inputs
from nemo_magic.judge.errors import JudgeUnavailable
from nemo_magic.runtime.started_rank import forget_partial, is_rank_zero

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No rank of anything, in a folder of its own, with everything that a run would read."""
    monkeypatch.setattr(inputs.Input, "problem", lambda self: None)
    for name in RANK_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been started: ``("ranks", argv, devices)`` or ``("rank", command, cfg)``."""
    calls: list[Any] = []

    class Judge:
        url = "http://127.0.0.1:4711"

        def __init__(self, cfg: Any) -> None:
            self.config = cfg.judge.at(self.url)

        def __enter__(self) -> Judge:
            return self

        def __exit__(self, *_: object) -> None: ...

        def supervise(self) -> None: ...

    def launch(argv: list[str], trainer: TrainerConfig, passed_on: object, fork: object, *_: object) -> int:
        calls.append(("ranks", argv, trainer.devices))
        return 0

    monkeypatch.setattr(launcher, "local_judge", Judge)
    monkeypatch.setattr(launcher, "launch", launch)
    monkeypatch.setattr(ranks, "run_rank", lambda command, cfg, work: calls.append(("rank", command, cfg)))
    return calls


def test_every_command_is_a_file_of_the_same_shape_and_help_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    files = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
    assert files - {"__init__", "config_arguments", "ranks", "run_folder"} == {
        name.replace("-", "_") for name in cli.COMMANDS
    }
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [f"{group}:" for group in cli.GROUPS if f"{group}:" not in lines] == []
    for name, about in cli.COMMANDS.items():
        assert sum(line.split() == [name, *about.split()] for line in lines) == 1
        module = cli.command_module(name)
        assert callable(module.add_arguments)
        assert callable(module.run)


@pytest.mark.process
def test_no_command_imports_torch_or_nemo_before_it_is_run_and_help_imports_no_command() -> None:
    heavy = "{'torch', 'nemo', 'megatron', 'lightning', 'transformers', 'pandas'}"
    code = (
        "import sys; from nemo_magic import cli; cli._top_parser();"
        "print([name for name in sys.modules if name.startswith(('nemo_magic.commands', 'hydra', 'numpy'))]);"
        f"[cli.command_module(name) for name in cli.COMMANDS]; print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "-cn", "magic_sandbox", "--dry"], "unknown option: --dry"),
        (["report", "folder", "--outt", "x"], "unknown option: --outt"),
        (["judge-check", "file", "--judge", "http://a", "seed=3"], "unknown argument: seed=3"),
    ],
)
def test_a_word_that_a_command_does_not_know_is_named(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_judges_are_checked_two_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["judge-check", "file", *["--judge", "http://a"] * 3]) == cli.EXIT_CONFIG
    assert capsys.readouterr().err == "nemo-magic judge-check: --judge is given at most twice\n"


def test_a_dry_run_prints_a_configuration_that_can_be_used_and_starts_nothing(
    capsys: pytest.CaptureFixture[str], started: list[Any], tmp_path: Path
) -> None:
    assert cli.main(["train", "-cn", "magic_sandbox", "game.schedule.freq=5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["game"]["schedule"]["freq"] == 5
    assert "# world     2 ranks" in printed
    assert started == []
    assert list(tmp_path.iterdir()) == []


def test_options_and_overrides_may_stand_in_any_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("defaults: [magic_sandbox, _self_]\nname: own\n")
    words = ["train", "seed=3", "--config-dir", str(tmp_path), "game=paper", "--dry-run", "--config-name", "own"]
    assert cli.main(words) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["name"], printed["seed"], printed["rewards"]["help"]) == ("own", 3, 0.0)


def test_a_wrong_configuration_ends_with_status_2_and_a_message_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-cn", "magic_sandbox", "game.schedul.freq=5"]) == cli.EXIT_CONFIG
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "nemo-magic train: unknown key game.schedul.freq; did you mean game.schedule.freq?\n"


@pytest.mark.parametrize("argv", [["train"], ["train", "-cn", "magic_sandbox", "--dry"], ["fly"], []])
def test_a_wrong_command_line_ends_with_status_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2


@pytest.mark.process
def test_a_failure_of_the_run_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, started: list[Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise JudgeUnavailable("nobody answers")

    monkeypatch.setattr(ranks, "run_rank", fail)
    folder = f"exp_manager.explicit_log_dir={tmp_path / 'run'}"
    assert cli.main(["train", "-cn", "magic_sandbox", "trainer.devices=1", folder]) == cli.EXIT_RUNTIME
    assert capsys.readouterr().err == "nemo-magic train: nobody answers\n"


@pytest.mark.process
def test_several_ranks_are_started_with_the_same_words_and_the_judge_that_runs_beside_them(started: list[Any]) -> None:
    words = ["train", "-cn", "magic_sandbox", "seed=3"]
    assert cli.main(words) == 0
    assert started == [("ranks", [*words, 'judge.urls=["http://127.0.0.1:4711"]', "judge.launch=false"], 2)]


@pytest.mark.process
def test_one_rank_runs_in_this_process_with_the_judges_address(started: list[Any]) -> None:
    assert cli.main(["train", "-cn", "magic_sandbox", "trainer.devices=1"]) == 0
    ((kind, command, cfg),) = started
    assert (kind, command) == ("rank", "train")
    assert (cfg.judge.urls, cfg.judge.launch) == (["http://127.0.0.1:4711"], False)


@pytest.mark.process
def test_warm_up_starts_no_judge(started: list[Any]) -> None:
    words = ["sft", "-cn", "sft_sandbox_attacker"]
    assert cli.main(words) == 0
    assert started == [("ranks", words, 2)]


def test_a_started_rank_runs_and_starts_nothing(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["train", "-cn", "magic_sandbox", 'judge.urls=["http://127.0.0.1:4711"]', "judge.launch=false"]
    assert cli.main(words) == 0
    assert started[0][:2] == ("rank", "train")


def test_ranks_that_srun_started_refuse_to_start_a_judge_each(
    started: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert cli.main(["train", "-cn", "magic_sandbox"]) == cli.EXIT_CONFIG
    assert "judge.urls=[http://host:port]" in capsys.readouterr().err
    assert started == []


@pytest.mark.process
def test_whoever_speaks_for_a_run_saves_its_configuration(started: list[Any], tmp_path: Path) -> None:
    cli.main(["sft", "-cn", "sft_sandbox_attacker", "seed=9"])
    saved = yaml.safe_load((tmp_path / "runs" / "sft_sandbox_attacker" / "config.yaml").read_text())
    assert saved["seed"] == 9
    assert (tmp_path / "runs" / "sft_sandbox_attacker" / "versions.json").is_file()


def test_the_sandbox_command_writes_the_files_that_the_configurations_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sandbox", "-cn", "magic_sandbox", "sandbox.attack_rows=5", "sandbox.defender_rows=5"]) == 0
    assert "runs/sandbox" in capsys.readouterr().out
    cfg = compose("magic_sandbox")
    pools = [compose(f"sft_sandbox_{role}", command="sft").sft.pool for role in ("attacker", "defender")]
    files = [*cfg.data.train_files, *cfg.data.validation_files, *cfg.data.test_files, *pools]
    files += [cfg.judge.guard_config["world"], f"{cfg.model.tokenizer.type}/tokenizer.json"]
    assert [path for path in files if not Path(path).is_file()] == []


def test_a_judge_that_cannot_be_served_is_answered_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["judge", "-cn", "magic_sandbox", "judge.guard=oracle"]) == cli.EXIT_CONFIG
    assert capsys.readouterr().err.startswith("nemo-magic judge: judge.guard='oracle' must be one of: ")
    cli.main(["sandbox", "-cn", "magic_sandbox", "sandbox.attack_rows=5", "sandbox.defender_rows=5"])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["judge", "-cn", "magic_sandbox", f"judge.server.port={port}"]) == cli.EXIT_RUNTIME
    assert f"port={port}: " in capsys.readouterr().err


def test_a_rank_is_known_by_its_environment() -> None:
    two, many = TrainerConfig(devices=2), TrainerConfig(num_nodes=2, devices=8)
    assert not launcher.is_rank(two, {})
    assert launcher.is_rank(two, {"RANK": "0", "WORLD_SIZE": "2"})
    assert launcher.is_rank(many, {"SLURM_PROCID": "9", "SLURM_NTASKS": "16"})
    # A batch script of one task is no rank: it starts them.
    assert not launcher.is_rank(two, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"})


@given(
    st.dictionaries(
        st.sampled_from(["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"]),
        st.sampled_from(["1", "2", "3"]),
    ),
    st.sampled_from([{}, {"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967290"}]),
)
def test_a_launchers_variables_count_only_whole(left: dict[str, str], job: dict[str, str]) -> None:
    """What a cluster, a shell or a batch script left behind makes no rank, and is not left to libraries either."""
    environ = left | job
    torch = {"RANK", "WORLD_SIZE"} <= left.keys()
    slurm = {"SLURM_PROCID", "SLURM_NTASKS"} <= left.keys() and not job
    if torch or slurm:
        return
    assert not launcher.is_rank(TrainerConfig(devices=2), environ)
    assert not launcher.is_rank(TrainerConfig(devices=1), environ)
    assert launcher.is_first_process(environ)
    assert is_rank_zero(environ)
    with pytest.raises(ConfigError, match="start the ranks with srun, 2 tasks per node"):
        launcher.is_rank(TrainerConfig(num_nodes=2, devices=2), environ)
    forget_partial(environ)
    assert environ == job


def test_srun_makes_ranks_of_a_job_and_a_batch_script_alone_does_not() -> None:
    batch = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    two, nodes = TrainerConfig(devices=2), TrainerConfig(num_nodes=2, devices=1)
    assert not launcher.is_rank(two, batch)
    with pytest.raises(ConfigError, match="with srun, 1 tasks per node; without it this batch script is one process"):
        launcher.is_rank(nodes, batch)
    step = batch | {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1"}
    assert launcher.is_rank(two, step)
    assert launcher.is_rank(nodes, step)
    assert not launcher.is_first_process(step)
    kept = dict(step)
    forget_partial(kept)
    assert kept == step


@pytest.mark.parametrize(
    ("environ", "told"),
    [
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK='one' is no number"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE='' is no number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK='-1' is no number"),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "2"}, "SLURM_PROCID=2 of SLURM_NTASKS=2: there is no such rank"),
    ],
)
def test_a_rank_that_cannot_be_is_refused_by_the_variables_name(environ: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        launcher.is_rank(TrainerConfig(devices=2), environ)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "sft"])
@pytest.mark.parametrize("folder", ["taken", "taken/below", "/dev/full/x", "/proc/nothing"])
def test_a_folder_that_cannot_be_written_to_is_refused_at_the_start(
    command: str, folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("a file")
    name = "magic_sandbox" if command == "train" else "sft_sandbox_defender"
    words = [command, "-cn", name, f"exp_manager.explicit_log_dir={folder}", "trainer.devices=1"]
    assert cli.main(words) == cli.EXIT_CONFIG
    said = capsys.readouterr().err
    assert said.startswith(f"nemo-magic {command}: {folder} cannot be written to: ")
    assert "exp_manager.explicit_log_dir" in said
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.slow
@pytest.mark.parametrize("off", [-1, 0, 1, 40])
@pytest.mark.parametrize("letter", ["d", "é"])
def test_a_temporary_folder_too_long_for_a_socket_is_refused_at_the_start(
    off: int, letter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = arbitrary_address("AF_UNIX")
    assert len(made) - len(tempfile.gettempdir()) == len("/pymp-xxxxxxxx/listener-xxxxxxxx")
    room = 75 - len(os.fsencode(tempfile.gettempdir())) - 1 + off
    count, rest = divmod(room, len(letter.encode()))
    folder = Path(tempfile.gettempdir()) / (letter * count + "x" * rest)
    address = folder / "pymp-xxxxxxxx" / "listener-xxxxxxxx"
    address.parent.mkdir(parents=True)
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        if off > 0:
            with pytest.raises(OSError, match="too long"):
                Listener(str(address))
            with pytest.raises(ValueError, match=f"{folder} has a path of {75 + off} bytes.*may have 75.*TMPDIR"):
                refuse_long_temporary_folder()
            words = [f"exp_manager.explicit_log_dir={tmp_path}", "trainer.devices=1"]
            assert cli.main(["train", "-cn", "magic_sandbox", *words]) == cli.EXIT_CONFIG
        else:
            Listener(str(address)).close()
            refuse_long_temporary_folder()
    finally:
        shutil.rmtree(folder)


def test_other_ranks_than_configured_are_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"4 ranks were started \(SLURM_NTASKS\), but .* = 16"):
        launcher.is_rank(TrainerConfig(num_nodes=2, devices=8), {"SLURM_PROCID": "0", "SLURM_NTASKS": "4"})
    with pytest.raises(ConfigError, match=r"1 ranks were started \(WORLD_SIZE\), but .* = 2"):
        launcher.is_rank(TrainerConfig(devices=2), {"RANK": "0", "WORLD_SIZE": "1"})


def test_several_nodes_need_srun() -> None:
    with pytest.raises(ConfigError, match="start the ranks with srun, 8 tasks per node"):
        launcher.is_rank(TrainerConfig(num_nodes=2, devices=8), {})


def test_exactly_one_process_speaks_for_a_run() -> None:
    assert launcher.is_first_process({})
    assert launcher.is_first_process({"RANK": "0", "WORLD_SIZE": "2"})
    assert not launcher.is_first_process({"RANK": "1", "WORLD_SIZE": "2"})
    assert not launcher.is_first_process({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"})
    # Ranks that nemo-magic itself started have a parent that spoke already.
    assert not launcher.is_first_process({"RANK": "0", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "nemo-magic-1"})


@pytest.mark.process
def test_launching_runs_every_rank_and_reports_a_failed_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkout = Path(cli.__file__).resolve().parents[1]
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    trainer = TrainerConfig(devices=2, accelerator="cpu")
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert launcher.launch(["train", "-cn", "magic_sandbox", "--dry-run"], trainer) == 0
    assert capfd.readouterr().out.count("name: magic_sandbox\n") == 2
    assert launcher.os.environ["OMP_NUM_THREADS"] == "1"
    assert "SLURM_JOB_ID" not in launcher.os.environ
    assert launcher.launch(["train", "-cn", "nothing"], trainer) == 2
    assert "--config-name nothing: no such file" in capfd.readouterr().err


@pytest.mark.process
def test_a_run_by_one_rank_installs_the_cpu_lane_first_and_then_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []
    lane = SimpleNamespace(install=lambda **_: order.append("lane"), CudaAvailableError=RuntimeError)
    monkeypatch.setitem(sys.modules, "nemo_magic.compat.cpu", lane)
    monkeypatch.setattr("nemo_magic.compat.cpu", lane, raising=False)
    sft = SimpleNamespace(run_sft=lambda cfg, resume: order.append(f"sft {cfg.sft.role}"))
    loop = SimpleNamespace(train=lambda cfg, resume: order.append(f"train {cfg.judge.urls}"))
    monkeypatch.setitem(sys.modules, "nemo_magic.training.sft", sft)
    monkeypatch.setitem(sys.modules, "nemo_magic.training.coevolution", loop)
    one_rank = ["trainer.devices=1", "judge.launch=false", "judge.urls=[http://here]"]
    assert cli.main(["sft", "-cn", "sft_sandbox_defender", *one_rank]) == 0
    assert cli.main(["train", "-cn", "magic_sandbox", *one_rank]) == 0
    assert order == ["lane", "sft defender", "lane", "train ['http://here']"]
