"""Prints the names that a league's files have, of made-up weights and seeds.

A program, since it needs the CPU lane, which a test's own process is not in.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nemo_magic.compat import cpu


def main() -> None:
    from nemo_magic.config import compose
    from nemo_magic.game.episode import Label, Seed
    from nemo_magic.league.cross_play import CrossPlayRunner
    from nemo_magic.league.participants import LeagueSeeds, Participant, digest, weights_digest

    with tempfile.TemporaryDirectory() as home:
        weights = {}
        for name in ("attacker", "defender"):
            weights[name] = Path(home) / name
            weights[name].mkdir()
            (weights[name] / "metadata.json").write_text("{}")
            (weights[name] / "__0_0.distcp").write_bytes(name.encode() * 400_000)
        identities = {name: weights_digest(path) for name, path in weights.items()}
    cfg = compose("magic_sandbox", ["game.max_turns=2"])
    seeds = LeagueSeeds([(0, Seed("h", "bring tea", Label.HARMFUL))], [(1, Seed("b", "bring milk", Label.BENIGN))], 2)
    cast: Any = SimpleNamespace(world=SimpleNamespace(dp_rank=0, dp_size=1))
    nobody: Any = SimpleNamespace(guard="rules@1")
    defender = Participant("phase-00", identities["defender"])
    attackers = [Participant("start", identities["attacker"]), Participant("no rewrite", digest("no rewrite"))]

    def keys(turns: int) -> list[str]:
        played = replace(cfg, game=replace(cfg.game, max_turns=turns))
        league = CrossPlayRunner(played, cast, nobody, nobody, seeds, {}, print)
        return [*map(league._attack_key, attackers), *(league._pair_key(one, defender) for one in attackers)]

    found = {
        "weights": identities,
        "digest": digest("remote", "tiny", ["http://b", "http://a"], {"x": 1}),
        "one turn": keys(1),
        "two turns": keys(2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    cpu.install(announce=False)
    main()
