"""The parts of a step that need a GPU and torch alone, measured and compared with the CPU's results.

    python benchmarks/gpu_parts.py [--billions 1 4] [--rows 512] [--vocabulary 128256] [--out FILE]

Three parts, as the actors use them: an optimizer's state leaves for host memory and comes back, as at a phase switch
(actors/optimizer_offload.py); a token per row is sampled from logits (actors/sampling.py); the GRPO loss and its
gradient (rl/loss.py). Each is timed on the GPU (median of five, synchronised) and checked: states bit-equal after the
round trip, the same ids as the CPU draws, loss and gradient within 1e-5 of the CPU's in float64.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from nemo_magic.actors.config import SamplingConfig
from nemo_magic.actors.optimizer_offload import Offload
from nemo_magic.actors.sampling import sample_tokens, uniform_draws
from nemo_magic.rl.aggregation import Normalizer
from nemo_magic.rl.config import GRPOConfig
from nemo_magic.rl.loss import LossInputs, grpo_loss

GIB = float(1 << 30)


def seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """The median of ``repeats`` runs, the device synchronised before and after each."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return median(times)


def offload(parameters: int) -> dict[str, float | bool]:
    """Adam's two float32 moments of ``parameters`` parameters to pinned host memory and back."""
    size = 1 << 26
    weights = [
        torch.nn.Parameter(torch.randn(size, device="cuda", dtype=torch.bfloat16)) for _ in range(parameters // size)
    ]
    optimizer = torch.optim.AdamW(weights, lr=1e-3)
    for weight in weights:
        optimizer.state[weight] = {
            "step": torch.tensor(3.0),
            "exp_avg": torch.randn(size, device="cuda"),
            "exp_avg_sq": torch.rand(size, device="cuda"),
        }
    before = [optimizer.state[weight]["exp_avg"].clone() for weight in weights[:2]]
    held = torch.cuda.memory_allocated()
    mover = Offload()
    began = time.perf_counter()
    mover.send(optimizer)
    first = time.perf_counter() - began
    freed = held - torch.cuda.memory_allocated()
    mover.fetch(optimizer)
    sends, fetches = [], []
    for _ in range(3):
        for times, move in ((sends, mover.send), (fetches, mover.fetch)):
            torch.cuda.synchronize()
            began = time.perf_counter()
            move(optimizer)
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    equal = all(torch.equal(a, optimizer.state[w]["exp_avg"]) for a, w in zip(before, weights, strict=False))
    moved = len(weights) * size * 8
    return {
        "state_gib": moved / GIB,
        "freed_gib": freed / GIB,
        "first_send_s": first,
        "send_s": median(sends),
        "fetch_s": median(fetches),
        "send_gb_per_s": moved / 1e9 / median(sends),
        "fetch_gb_per_s": moved / 1e9 / median(fetches),
        "bit_equal": equal,
    }


def sampling(rows: int, vocabulary: int) -> dict[str, float]:
    """A token per row from [rows, vocabulary] logits, by three ways of sampling."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(rows, vocabulary, device="cuda", generator=generator) * 4
    banned = torch.zeros(rows, dtype=torch.bool, device="cuda")
    ends = torch.tensor([2], device="cuda")
    draw = uniform_draws(range(rows), 1, "cuda")
    ways = {
        "greedy": SamplingConfig(use_greedy=True),
        "whole distribution": SamplingConfig(temperature=1.0, top_k=0, top_p=1.0),
        "top_p 0.9": SamplingConfig(temperature=1.0, top_k=0, top_p=0.9),
    }
    results: dict[str, float] = {}
    checked = slice(0, 64)
    for name, config in ways.items():
        ids, logprobs = sample_tokens(logits, draw, config, vocabulary, banned, ends)
        own = [x[checked].cpu() for x in (logits, draw, banned)]
        cpu_ids, cpu_logprobs = sample_tokens(own[0], own[1], config, vocabulary, own[2], ends.cpu())
        results[f"{name}: ms"] = 1e3 * seconds(lambda: sample_tokens(logits, draw, config, vocabulary, banned, ends))  # noqa: B023
        results[f"{name}: ids as on the CPU"] = float((ids[checked].cpu() == cpu_ids).double().mean())
        results[f"{name}: largest logprob difference"] = float((logprobs[checked].cpu() - cpu_logprobs).abs().max())
    return results


def loss(rows: int = 16, width: int = 4096) -> dict[str, float]:
    """The GRPO loss of a microbatch and its gradient, with old, reference and generator log-probabilities."""
    config = GRPOConfig(kl_beta=0.01, tis_clip=2.0)
    generator = torch.Generator().manual_seed(0)
    base = -torch.rand(rows, width, generator=generator, dtype=torch.float64) * 3
    noise = [torch.randn(rows, width, generator=generator, dtype=torch.float64) * 0.05 for _ in range(3)]
    mask = torch.rand(rows, width, generator=generator) < 0.7
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    norm = Normalizer(float(mask.sum()), float(rows))

    def run(device: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        options = {"device": device, "dtype": dtype}
        logprobs = base.clone().to(**options).detach().requires_grad_()
        inputs = LossInputs(
            logprobs,
            advantages.to(**options),
            mask.to(device),
            (base + noise[0]).to(**options),
            (base + noise[1]).to(**options),
            (base + noise[2]).to(**options),
        )
        output = grpo_loss(inputs, config, norm)
        output.loss.backward()
        assert logprobs.grad is not None
        return output.loss.detach().cpu().double(), logprobs.grad.cpu().double()

    exact, gradient = run("cpu", torch.float64)
    value, own = run("cuda", torch.float32)
    return {
        "ms": 1e3 * seconds(lambda: run("cuda", torch.float32)),
        "loss difference": float((value - exact).abs()),
        "largest gradient difference, of the largest gradient": float(
            (own - gradient).abs().max() / gradient.abs().max()
        ),
    }


def main() -> None:
    """Measure, print, and write ``--out``; exit 1 where a check fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, nargs="*", default=[1, 4], help="parameters whose state is moved")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_parts.py needs a GPU")
    found = {
        "machine": {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "python": sys.version.split()[0]},
        "offload": {f"{billions:g}B": offload(int(billions * 1e9)) for billions in args.billions},
        "sampling": sampling(args.rows, args.vocabulary),
        "loss": loss(),
    }
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    checks = [
        *(state["bit_equal"] for state in found["offload"].values()),
        *(value == 1 for name, value in found["sampling"].items() if name.endswith("on the CPU")),
        *(value < 1e-5 for name, value in found["loss"].items() if "difference" in name),
    ]
    if not all(checks):
        sys.exit("a result differs from the CPU's")


if __name__ == "__main__":
    main()
