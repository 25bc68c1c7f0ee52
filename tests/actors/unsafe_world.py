"""A world of one rank that is given weights which would run something; what became of each is written down.

``torchrun --nproc-per-node 1 unsafe_world.py FOLDER``. Not a test module: Megatron cannot be started twice in one
process.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nemo_magic.compat import cpu
from tests.compat.payloads import Calls, objects, torch_saved, torchscript

Poison = Callable[[Path, Any], None]


def main(folder: Path) -> None:
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.actors.weights import load_policies, load_weights, save_weights, unpickling
    from nemo_magic.config import compose, role_model
    from nemo_magic.game.episode import Role

    words = ["trainer.devices=1", "model.num_layers=2", f"sandbox.folder={folder / 'sandbox'}"]
    cfg = compose("magic_sandbox", [*words, "actors.defender.restore_from_path=null"])
    model = role_model(cfg, Role.DEFENDER)
    policy = build_policy(Role.DEFENDER, model, cfg.actors.defender, cfg.trainer, 5)
    save_weights(policy.actor, folder / "whole")
    (folder / "config.yaml").write_text("target: builtins.print\n")
    found: dict[str, tuple[str, str, bool]] = {}

    def attempt(name: str, marker: Path, read: Callable[[], None]) -> None:
        try:
            read()
            kind, text = "none", ""
        except Exception as error:
            kind, text = type(error).__name__, str(error)
        found[name] = (kind, text, marker.exists())

    for place, poison in POISONS.items():
        for wanted, payload in objects(folder / f"marker-{place}").items():
            marker, bad = folder / f"marker-{place}", folder / "bad"
            shutil.rmtree(bad, ignore_errors=True)
            shutil.copytree(folder / "whole", bad)
            poison(bad, payload)
            attempt(f"{place} {wanted}", marker, lambda bad=bad: load_weights(policy.actor, bad))
            if wanted == "posix.system" and place != "extra_state":
                packed = folder / "bad.nemo"
                with tarfile.open(packed, "w") as tar:
                    tar.add(bad, "./model_weights")
                    tar.add(folder / "config.yaml", "./model_config.yaml")
                attempt(f"{place} nemo {wanted}", marker, lambda packed=packed: load_weights(policy.actor, packed))
                attempt(f"{place} policies {wanted}", marker, lambda bad=bad: load_policies({"defender": policy}, bad))
    (bad / "common.pt").write_bytes(torchscript(folder))
    attempt("common torch.jit.load", folder / "marker", lambda: load_weights(policy.actor, bad))
    (folder / "rng.pt").write_bytes(torch_saved(objects(folder / "marker")["posix.system"]))

    def read_states() -> None:
        import torch

        with unpickling(folder / "rng.pt"):
            torch.load(folder / "rng.pt")

    attempt("rng posix.system", folder / "marker", read_states)
    attempt("whole", folder / "marker", lambda: load_weights(policy.actor, folder / "whole"))
    policy.actor.trusts_weights = True
    (folder / "whole" / "common.pt").write_bytes(torch_saved({"x": Calls(Path.touch, folder / "trusted")}))
    attempt("trusted", folder / "trusted", lambda: load_weights(policy.actor, folder / "whole"))
    (folder / "found.json").write_text(json.dumps(found))


def _metadata(folder: Path, payload: Any) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = payload
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def _common(folder: Path, payload: Any) -> None:
    (folder / "common.pt").write_bytes(torch_saved({"x": payload}))


def _extra_state(folder: Path, payload: Any) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    data = torch_saved([payload])
    for index, info in metadata.storage_data.items():
        if "_extra_state" in index.fqn:
            (folder / "__extra.distcp").write_bytes(data)
            info.relative_path, info.offset, info.length = "__extra.distcp", 0, len(data)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


POISONS: dict[str, Poison] = {"metadata": _metadata, "common": _common, "extra_state": _extra_state}


if __name__ == "__main__":
    cpu.install(announce=False)
    main(Path(sys.argv[1]))
