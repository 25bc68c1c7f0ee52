"""The CPU lane: refuses a machine with CUDA, is the only place that asks, and its Adam is AdamW."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_magic.compat import cpu
from nemo_magic.compat.adam import FusedAdam

PACKAGE = Path(cpu.__file__).parents[1]


def test_it_refuses_to_install_where_cuda_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(cpu.CudaAvailableError, match=r"Use trainer.accelerator=gpu"):
        cpu.install()
    assert not cpu.installed()
    assert torch.zeros.__module__ != cpu.__name__


def test_no_other_module_asks_what_device_it_is_on_or_patches_a_library() -> None:
    asking = re.compile(r"is_available\(|device_count\(|HAVE_APEX|HAVE_TE")
    allowed = {PACKAGE / "compat" / name for name in ("cpu.py", "megatron.py")}
    found = [path for path in PACKAGE.rglob("*.py") if asking.search(path.read_text()) and path not in allowed]
    assert found == []


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_fused_adam_is_adamw(weight_decay: float) -> None:
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 4, generator=draw), torch.randn(5, generator=draw)]
    mine, theirs = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    options = {"lr": 1e-2, "betas": (0.9, 0.98), "weight_decay": weight_decay}
    first, second = FusedAdam(mine, **options), torch.optim.AdamW(theirs, **options)  # type: ignore[arg-type]
    for _ in range(7):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=draw)
            b.grad = a.grad.clone()
        first.step()
        second.step()
    for a, b in zip(mine, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert first.param_groups[0]["step"] == 7
    assert all(set(state) == {"exp_avg", "exp_avg_sq"} for state in first.state.values())


def test_leaving_ends_what_process_groups_there_are_and_may_be_done_twice() -> None:
    from nemo_magic.actors.distributed import destroy

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    torch.distributed.new_group([0])
    destroy()
    assert not torch.distributed.is_initialized()
    destroy()


MAKE_ONE_OF_EACH = """
import torch
from nemo_magic.compat import cpu
from nemo_magic.compat.adam import FusedAdam

cpu.install(announce=False)
given = {"arange": (3,), "eye": (2,), "linspace": (0, 1, 3), "randint": (3, (2,)), "randperm": (3,)}
given |= {"as_tensor": ([1.0],), "tensor": ([1.0],), "full": ((2,), 1.0)}
# What is made like another tensor is where that one is.
names = [name for name in cpu._FACTORIES if not name.endswith("_like")]
with torch.device("meta"):
    print([name for name in names if getattr(torch, name)(*given.get(name, ((2,),))).device.type != "meta"])
"""


@pytest.mark.process
def test_a_device_context_reaches_the_factories_that_are_patched() -> None:
    """Libraries build a model on the meta device and fill in what they find there: what is not there stays garbage."""
    found = subprocess.run([sys.executable, "-c", MAKE_ONE_OF_EACH], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]", found.stdout
