"""Weights from elsewhere that would run something: refused by its name, nothing runs, nothing is written."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nemo_magic import cli
from nemo_magic.commands.config_arguments import trust_overrides
from nemo_magic.config import compose
from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.convert.torch_dist import COMMON, INDEX, METADATA
from tests.compat.payloads import Calls, metadata_with, objects, torch_saved
from tests.convert.tiny_hf import make

PAYLOADS = sorted(objects(Path("/nowhere/marker")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unsafe")
    hf_to_nemo(make(folder / "hf"), folder / "nemo", say=lambda _: None)
    return folder / "nemo"


def as_folder(whole: Path, home: Path, index: bytes) -> Path:
    source = Path(shutil.copytree(whole, home / "source"))
    (source / INDEX).write_bytes(index)
    return source


def as_nemo_file(whole: Path, home: Path, index: bytes) -> Path:
    as_folder(whole, home, index).rename(home / "model_weights")
    (home / "model_config.yaml").write_text(yaml.safe_dump(yaml.safe_load((whole / "model.yaml").read_text())))
    with tarfile.open(home / "source.nemo", "w") as tar:
        for name in ("model_config.yaml", "model_weights"):
            tar.add(home / name, f"./{name}")
    return home / "source.nemo"


def as_snapshot(whole: Path, home: Path, index: bytes) -> Path:
    run = home / "run"
    as_folder(whole, home, index).rename(home / "round_0001")
    (run / "snapshots" / "defender").mkdir(parents=True)
    (home / "round_0001").rename(run / "snapshots" / "defender" / "round_0001")
    (run / "snapshots" / "defender" / "round_0001" / "model.yaml").unlink()
    (run / "config.yaml").write_text(yaml.safe_dump({"model": {"tokenizer": {}}, "actors": {"defender": {}}}))
    return run / "snapshots" / "defender" / "round_0001"


@pytest.mark.parametrize("place", [as_folder, as_nemo_file, as_snapshot])
@pytest.mark.parametrize("name", PAYLOADS)
def test_metadata_that_would_run_something_is_refused_by_name(
    whole: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    place: Callable[[Path, Path, bytes], Path],
    name: str,
) -> None:
    marker = tmp_path / "marker"
    source = place(whole, tmp_path, metadata_with(objects(marker)[name]))
    assert cli.main(["convert", "nemo-to-hf", str(source), str(tmp_path / "target")]) == 1
    assert f"{name}, which weights do not consist of" in capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "target").exists()


def test_trusted_metadata_may_do_what_it_wants(whole: Path, tmp_path: Path) -> None:
    metadata = pickle.loads((whole / INDEX).read_bytes())
    metadata.planner_data = [Calls(Path.touch, tmp_path / "marker")]
    source = as_folder(whole, tmp_path, pickle.dumps(metadata))
    words = ["convert", "nemo-to-hf", str(source), str(tmp_path / "target")]
    assert cli.main(words) == 1
    assert not (tmp_path / "marker").exists()
    assert cli.main([*words, "--trust-weights"]) == 0
    assert (tmp_path / "marker").exists()


def test_a_tensor_that_would_run_something_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    metadata = pickle.loads((whole / INDEX).read_bytes())
    source = as_folder(whole, tmp_path, (whole / INDEX).read_bytes())
    for info in metadata.storage_data.values():
        data = torch_saved(objects(tmp_path / "marker")["posix.system"])
        (source / info.relative_path).write_bytes(data)
        info.offset, info.length = 0, len(data)
    (source / INDEX).write_bytes(pickle.dumps(metadata))
    assert cli.main(["convert", "nemo-to-hf", str(source), str(tmp_path / "target")]) == 1
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("value", [[], {"a": 1}, None, "text", 3])
def test_metadata_that_is_none_is_damaged(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: object
) -> None:
    source = as_folder(whole, tmp_path, pickle.dumps(value))
    assert cli.main(["convert", "nemo-to-hf", str(source), str(tmp_path / "target")]) == 1
    assert f"{source / INDEX} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("elsewhere", ["../secret", "/etc/hostname", "inner/../../secret"])
def test_a_checkpoint_reads_files_of_its_own_folder_only(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], elsewhere: str
) -> None:
    metadata = pickle.loads((whole / INDEX).read_bytes())
    source = as_folder(whole, tmp_path, b"")
    first = next(iter(metadata.storage_data.values()))
    (tmp_path / "secret").write_bytes((source / first.relative_path).read_bytes())
    first.relative_path = elsewhere
    (source / INDEX).write_bytes(pickle.dumps(metadata))
    assert cli.main(["convert", "nemo-to-hf", str(source), str(tmp_path / "target")]) == 1
    assert f"missing or cut short: {elsewhere}" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a-${oc.env:HOME}", "${oc.decode:1}"])
def test_a_configuration_among_weights_reads_nothing_outside_of_it(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    source = as_folder(whole, tmp_path, (whole / INDEX).read_bytes())
    keys = yaml.safe_load((source / "model.yaml").read_text())
    keys["tokenizer"]["type"] = text
    (source / "model.yaml").write_text(yaml.safe_dump(keys))
    assert cli.main(["convert", "nemo-to-hf", str(source), str(tmp_path / "target")]) == 1
    assert f"{text!r} refers to something outside of the file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../escaped", "model_weights/../../escaped", "/escaped"])
def test_a_nemo_file_writes_nowhere_else(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "source.nemo", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    assert cli.main(["convert", "nemo-to-hf", str(tmp_path / "source.nemo"), str(tmp_path / "out" / "target")]) == 1
    assert not list(tmp_path.rglob("escaped"))


def test_the_option_is_the_key_of_both_roles() -> None:
    parser = cli.command_module("serve")
    args = cli._parse("serve", parser, ["serve", "-cn", "magic", "--trust-weights"])
    assert trust_overrides(args) == ["actors.attacker.trust_weights=true", "actors.defender.trust_weights=true"]
    cfg = compose("magic_sandbox", trust_overrides(args))
    assert cfg.actors.attacker.trust_weights
    assert cfg.actors.defender.trust_weights
    assert not compose("magic_sandbox", []).actors.defender.trust_weights


def test_what_is_written_here_is_read_here(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} >= {INDEX, COMMON, METADATA}
    assert json.loads((whole / METADATA).read_text())["sharded_backend"] == "torch_dist"
