"""Learning rates over a schedule by NeMo's CosineAnnealing and by ours, as JSON: python -m tests.current.rates"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import torch

from nemo_magic.compat import cpu
from nemo_magic.model_config import SchedConfig

SCHEDULES = (
    SchedConfig(warmup_steps=0, min_lr=1e-4, max_steps=10),
    SchedConfig(warmup_steps=3, min_lr=0.0, max_steps=10),
    SchedConfig(warmup_steps=3, constant_steps=4, min_lr=1e-5, max_steps=12),
    SchedConfig(warmup_steps=0, min_lr=1e-3, max_steps=5),
)
LR = 1e-3


def main() -> None:
    cpu.install(announce=False)
    from nemo.core.optim.lr_scheduler import CosineAnnealing

    from nemo_magic.actors.megatron.optimizer import CosineSchedule

    found = []
    for sched in SCHEDULES:
        theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
        reference = CosineAnnealing(
            theirs,
            max_steps=sched.max_steps,
            min_lr=sched.min_lr,
            warmup_steps=sched.warmup_steps,
            constant_steps=sched.constant_steps,
        )
        mine: Any = SimpleNamespace(param_groups=[{"lr": LR}])
        ours = CosineSchedule(mine, LR, sched)
        rates = []
        for _ in range(15):
            rates.append((theirs.param_groups[0]["lr"], mine.param_groups[0]["lr"]))
            theirs.step()
            reference.step()
            ours.step()
        found.append(rates)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
