"""The frozen role's optimizer state goes to the host and comes back, for every optimizer that NeMo may bring.

On a machine without a GPU the host stands for the device as well; what is checked is which tensors travel.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nemo_magic.actors.optimizer_offload import Offload


@pytest.fixture(autouse=True)
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def stepped() -> torch.optim.Adam:
    weight = torch.nn.Parameter(torch.arange(6.0))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.ones(6)
    optimizer.step()
    return optimizer


def moments(optimizer: Any) -> list[torch.Tensor]:
    return [values[name] for values in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


def test_state_goes_and_returns_unchanged() -> None:
    optimizer, away = stepped(), Offload(on_host=lambda tensor: False)
    before = [m.clone() for m in moments(optimizer)]
    pointers = [m.data_ptr() for m in moments(optimizer)]
    away.send(optimizer)
    assert away.is_away
    waiting = [m.data_ptr() for m in moments(optimizer)]
    assert not set(waiting) & set(pointers)
    away.fetch(optimizer)
    assert not away.is_away
    assert all(map(torch.equal, moments(optimizer), before))
    assert not set(waiting) & {m.data_ptr() for m in moments(optimizer)}  # not the host's buffers


def test_learning_goes_on_as_if_the_state_had_never_left() -> None:
    travelled, stayed, away = stepped(), stepped(), Offload(on_host=lambda tensor: False)
    for _ in range(2):
        away.send(travelled)
        away.send(travelled)
        away.fetch(travelled)
        away.fetch(travelled)
        for optimizer in (travelled, stayed):
            optimizer.step()
    assert torch.equal(travelled.param_groups[0]["params"][0], stayed.param_groups[0]["params"][0])


def test_the_hosts_buffers_are_used_again() -> None:
    optimizer, away = stepped(), Offload(on_host=lambda tensor: False)
    seen = []
    for _ in range(2):
        away.send(optimizer)
        seen.append([m.data_ptr() for m in moments(optimizer)])
        away.fetch(optimizer)
    assert seen[0] == seen[1]


def test_what_is_on_the_host_already_stays_where_it_is() -> None:
    optimizer, away = stepped(), Offload()
    pointers = [m.data_ptr() for m in moments(optimizer)]
    away.send(optimizer)
    assert not away.is_away
    assert [m.data_ptr() for m in moments(optimizer)] == pointers


def test_the_main_parameters_of_nemos_wrapper_travel_too() -> None:
    inner = stepped()
    main = torch.nn.Parameter(torch.arange(4.0))
    wrapper = SimpleNamespace(optimizer=inner, fp32_from_float16_groups=[[main]], state=inner.state)
    pointer, away = main.data_ptr(), Offload(on_host=lambda tensor: False)
    away.send(wrapper)
    assert main.data_ptr() != pointer
    away.fetch(wrapper)
    assert torch.equal(main.data, torch.arange(4.0))


def test_the_main_weights_of_the_backend_megatron_travel_too() -> None:
    optimizer, away = stepped(), Offload(on_host=lambda tensor: False)
    main = torch.arange(4.0)
    both = SimpleNamespace(main_weights=[main], state=optimizer.state)
    pointers = [main.data_ptr(), *(m.data_ptr() for m in moments(optimizer))]
    away.send(both)
    assert not set(pointers) & {main.data_ptr(), *(m.data_ptr() for m in moments(optimizer))}
    away.fetch(both)
    assert torch.equal(main, torch.arange(4.0))


def test_the_shards_of_apexs_distributed_adam_travel_too() -> None:
    bucket = SimpleNamespace(
        params_shard=torch.ones(3), param_remainders_shard=None, exp_avg_shard=torch.zeros(3), exp_avg_sq_shard=None
    )
    optimizer = SimpleNamespace(state={"step": 3, "buckets": [bucket]})
    pointers, away = (bucket.params_shard.data_ptr(), bucket.exp_avg_shard.data_ptr()), Offload(lambda tensor: False)
    away.send(optimizer)
    assert bucket.params_shard.data_ptr() != pointers[0]
    assert bucket.exp_avg_shard.data_ptr() != pointers[1]
    away.fetch(optimizer)
    assert torch.equal(bucket.params_shard, torch.ones(3))
    assert bucket.param_remainders_shard is None
