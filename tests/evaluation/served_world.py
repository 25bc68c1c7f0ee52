"""A tiny Llama with random weights that speaks the sandbox's syllables, as Hugging Face's folder, as a ``.nemo`` file
and as llama.cpp's, and the commands that serve and evaluate it."""

from __future__ import annotations

import json
import re
import signal
import string
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_magic.convert.hf_to_nemo import hf_to_nemo
from nemo_magic.sandbox.corpus import prepare
from nemo_magic.sandbox.world import SandboxConfig, SandboxWorld
from tests import zygote
from tests.judge import tiny_checkpoint

ROWS = 128
"""Of the embedding, and of the tokenizer: nothing is padded, so that two normalisations are over the same numbers."""
POSITIONS = tiny_checkpoint.CONTEXT
PATIENCE = 600


class ServedWorld:
    """``hf``: transformers' folder; ``nemo``: the same as one file; ``gguf``: as llama.cpp's; ``sandbox``: seeds and
    rules."""

    def __init__(self, home: Path, hf: Path | None = None, positions: int = POSITIONS) -> None:
        """``hf``: another model than the tiny one, which is not made then; ``positions``: of either."""
        self.home, self.nemo, self.sandbox, self.positions = home, home / "tiny.nemo", home / "sandbox", positions
        prepare(SandboxConfig(folder=str(self.sandbox), attack_rows=50, defender_rows=50))
        self.gguf = home / "tiny.gguf"
        self.hf = hf or make_tiny(home, ["Ġ", "Ċ", ":", *string.ascii_lowercase], ROWS)
        hf_to_nemo(self.hf, self.nemo, say=lambda _: None)
        # What a user puts in a folder of their own: a converted folder's model.yaml, and a primary file.
        hf_to_nemo(self.hf, home / "converted", say=lambda _: None)
        (home / "conf" / "model").mkdir(parents=True)
        (home / "conf" / "model" / "served.yaml").write_text((home / "converted" / "model.yaml").read_text())
        (home / "conf" / "three_ways.yaml").write_text("defaults: [eval_sandbox, _self_]\nname: three_ways\n")

    def words(self, command: str, *overrides: str) -> list[str]:
        """A command line for the model at TP2, from the ``.nemo`` file."""
        return [
            command, "-cn", "three_ways", "-cd", str(self.home / "conf"),
            "model=served", "cluster=cpu", "model.transformer_engine=false", "model.megatron_amp_O2=false",
            "model.optim.name=cpu_fused_adam", "model.tensor_model_parallel_size=2", "model.micro_batch_size=8",
            f"model.encoder_seq_length={self.positions}", f"model.tokenizer.type={self.hf}",
            f"sandbox.folder={self.sandbox}", f"actors.defender.restore_from_path={self.nemo}",
            "actors.defender.length_params.min_length=0", "actors.defender.length_params.max_length=12", *overrides,
        ]  # fmt: skip

    def run(self, *words: str, status: int = 0) -> str:
        done = zygote.run(zygote.nemo_magic(*words), PATIENCE)
        assert done.returncode == status, f"{done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
        return done.stdout


def make_tiny(home: Path, alphabet: Sequence[str], rows: int, **shape: int) -> Path:
    """transformers' folder of the tiny model, of ``rows`` words: the letters of ``alphabet``, and the syllables,
    which it says more often."""
    syllables = SandboxWorld(SandboxConfig()).syllables
    merges = [pair for a, b in syllables for pair in ((a, b), ("Ġ", a + b))]
    loud = ["<|end|>", *(f"Ġ{syllable}" for syllable in syllables)]
    return tiny_checkpoint.make(home, 3, alphabet, merges, rows, loud, **shape)[0]


# --- one table


@dataclass(frozen=True)
class Evaluated:
    """An evaluation's figures, its table, and what was said in it by example."""

    figures: list[dict[str, Any]]
    markdown: str
    said: dict[str, list[list[str]]]


def evaluated(world: ServedWorld, name: str, *overrides: str) -> Evaluated:
    """The bare seeds, and some that transformers rewrites, whoever the defender is."""
    folder = world.home / name
    attacker = [f"actors.attacker.restore_from_path={world.hf}", "actors.attacker.length_params.max_length=10"]
    few = ["eval.tasks.validation.limit=8", f"exp_manager.explicit_log_dir={folder}"]
    world.run(*world.words("evaluate", *attacker, *few, *overrides))
    results = json.loads((folder / "results.json").read_text())
    said = {}
    for task in ("test", "validation"):
        rows = [
            json.loads(line)
            for path in (folder / "transcripts").glob(f"{task}.*.jsonl")
            for line in path.read_text().splitlines()
        ]
        said |= {f"{task} {row['id']}": row["turns"] for row in rows}
    # Why a case has no answer is said in the words of who plays: an empty text, or a server's empty content.
    table = re.sub(r"(without an answer: unknown) \(.*\)", r"\1", (folder / "results.md").read_text())
    return Evaluated(results["figures"], table, said)


# --- servers


class Server:
    """A command that says ``… on http://…/v1, ready``, or what matches ``ready``, and serves until it is told to
    end."""

    def __init__(self, words: list[str], ready: str = r"on (http://\S+/v1), ready") -> None:
        request = zygote.nemo_magic(*words)
        self._running = zygote.start(request, stdout=zygote.PIPE, stderr=zygote.STDOUT, text=True)
        self.said: list[str] = []
        self.url = ""
        assert self._running.stdout is not None
        watchdog = threading.Timer(PATIENCE, self._running.kill)
        watchdog.start()
        for line in self._running.stdout:
            self.said.append(line)
            if found := re.search(ready, line):
                self.url = found[1]
                break
        watchdog.cancel()
        if not self.url:
            self._running.wait()
            raise AssertionError("".join(self.said))
        self._rest = threading.Thread(target=lambda: self.said.extend(self._running.stdout or ()), daemon=True)
        self._rest.start()

    def signal(self) -> None:
        """Ask it to end."""
        self._running.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        """Its exit status, once it has ended."""
        try:
            return self._running.wait(timeout=PATIENCE)
        finally:
            self._running.kill()
            self._rest.join()


class LlamaServer:
    """llama.cpp's own server, of ``file`` under ``name``."""

    def __init__(self, file: Path, name: str) -> None:
        command = [sys.executable, tiny_checkpoint.__file__, "serve", str(file), name, "0"]
        self._running = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._running.stdout is not None
        self.url = f"{self._running.stdout.readline().strip()}/v1"

    def close(self) -> None:
        self._running.kill()
        self._running.communicate()
