"""Tokens per second of our native decoding beside transformers' ``generate``, on equal models, prompts and lengths.

    python benchmarks/generation.py [--batch 512 64] [--group 8 1] [--repeats 9] [--cpu-time] [--out FILE]
                                    [key=value …]
    python benchmarks/generation.py --hf FOLDER [--batch 1 16 64] [--prompt 64] [--length 64] [--repeats 3] [--cpu-time]
                                    [--current .venv-current/bin/python]

``key=value`` are overrides of conf/magic_sandbox.yaml, e.g. ``model.num_layers=8``. Both sides sample at temperature 1
from random weights, exactly ``actors.attacker.length_params.max_length`` tokens a row, and take turns. Prompts are
random ids, as many as the sandbox's attacker is shown; each is sampled ``--group`` times (8 as in the game, 1: all
prompts differ). Both sides begin with lists of prompt ids and end with lists of sampled ids; ours also returns every
token's log-probability and the texts, so transformers is timed twice: as it is, and returning the same.

With ``--hf`` all sides have the weights of a Hugging Face folder, each in a process of its own; all prompts differ,
and the highest memory of each process is shown, weights and libraries included. ``--current`` adds the other backend:
its native decoding, and vLLM in its process.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures import report, settle, table
from sides import Side, compare, spread

if TYPE_CHECKING:
    from nemo_magic.actors.nemo_aligner.actor import MagicActor
    from nemo_magic.config import MagicConfig

Prompts = list[tuple[int, ...]]
CURRENT = ("current", "vllm")
OURS, PLAIN, SAME = "ours", "transformers", "transformers, log-probabilities and texts too"


def build(words: Sequence[str], folder: Path) -> tuple[MagicConfig, MagicActor, int]:
    """An attacker with random weights, and how many tokens the sandbox shows it."""
    from nemo_magic.compat import cpu

    cpu.install(announce=False)
    from nemo_magic.actors.builder import build_policy
    from nemo_magic.config import compose, role_model
    from nemo_magic.data.seeds import load_seeds
    from nemo_magic.game.episode import Role
    from nemo_magic.game.prompts import attacker_messages
    from nemo_magic.sandbox.corpus import prepare

    overrides = ["trainer.devices=1", f"sandbox.folder={folder}", "actors.attacker.restore_from_path=null"]
    cfg = compose("magic_sandbox", [*overrides, *words], command="sandbox")
    prepare(cfg.sandbox)
    options = cfg.actors.attacker
    player = build_policy(Role.ATTACKER, role_model(cfg, Role.ATTACKER), options, cfg.trainer, cfg.seed)
    chat = attacker_messages(cfg.game.prompts, load_seeds(cfg.data).train[0], [], 1)
    return cfg, player.actor, len(player.actor.chat.prompt_ids(chat))


def prompts_of(rows: int, group: int, length: int, vocabulary: int) -> Prompts:
    """Random prompts, each ``group`` times in a row."""
    draw = random.Random(0)
    distinct = [tuple(draw.randrange(vocabulary) for _ in range(length)) for _ in range(-(-rows // group))]
    return [distinct[i // group] for i in range(rows)]


def ours(actor: MagicActor, cfg: MagicConfig, length: int) -> Callable[[Prompts], int]:
    """Decode and count the sampled tokens."""
    from nemo_magic.actors.config import LengthConfig, SamplingConfig
    from nemo_magic.actors.generation import NativeGenerator

    generator = NativeGenerator(replace(cfg.generation, batch_size=1 << 20))
    sampling, lengths = SamplingConfig(), LengthConfig(max_length=length, min_length=length)

    generator.load(actor)

    def decode(prompts: Prompts) -> int:
        completions = generator.generate(prompts, range(len(prompts)), sampling, lengths)
        return sum(len(completion.response_ids) for completion in completions)

    return decode


def theirs(actor: MagicActor, length: int) -> tuple[Callable[[Prompts, bool], int], int]:
    """The same for a Llama of transformers, and its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    cfg, chat = actor.cfg, actor.chat
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=actor.padded_vocab_size,
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.ffn_hidden_size,
            num_hidden_layers=cfg.num_layers,
            num_attention_heads=cfg.num_attention_heads,
            num_key_value_heads=cfg.num_query_groups or cfg.num_attention_heads,
            max_position_embeddings=cfg.encoder_seq_length,
            rms_norm_eps=cfg.layernorm_epsilon,
            rope_theta=cfg.rotary_base,
            pad_token_id=chat.pad_id,
            bos_token_id=None,
            eos_token_id=chat.end_id,
            tie_word_embeddings=cfg.share_embeddings_and_output_weights,
        )
    ).eval()

    def decode(prompts: Prompts, same_product: bool) -> int:
        longest = max(map(len, prompts))
        padded = torch.tensor([(chat.pad_id,) * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([(0,) * (longest - len(p)) + (1,) * len(p) for p in prompts])
        with torch.no_grad():
            output = model.generate(
                padded,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                min_new_tokens=length,
                max_new_tokens=length,
                return_dict_in_generate=True,
                output_scores=same_product,
            )
            tokens = output.sequences[:, longest:]
            if same_product:
                scores = torch.stack(output.scores, 1).log_softmax(-1).gather(2, tokens[:, :, None]).squeeze(2)
                scores.tolist()
                [chat.text(row) for row in tokens.tolist()]
        return sum(map(len, tokens.tolist()))

    return decode, sum(p.numel() for p in model.parameters())


def measure(
    sides: dict[str, Callable[[Prompts], int]],
    prompts: Prompts,
    length: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, dict[str, float]]:
    """Tokens per second of each side, in turn, after a round that counts for nothing."""
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, decode in sides.items():
            started = clock()
            tokens = decode(prompts)
            seconds = clock() - started
            if tokens != length * len(prompts):
                raise AssertionError(f"{name} sampled {tokens} tokens for {len(prompts)} prompts, not {length} each")
            if repeat:
                speeds[name].append(tokens / seconds)
    return {name: spread(values) for name, values in speeds.items()}


def on_folder(args: argparse.Namespace) -> None:
    """Ours beside transformers on ``args.hf``: tokens per second and memory."""
    options = {"prompt": args.prompt, "length": args.length, "micro": 1}
    clock, repeats = "cpu_seconds" if args.cpu_time else "seconds", args.repeats or 3
    results: dict[int, Any] = {}
    with ExitStack() as running:
        sides = [running.enter_context(Side(name, args.hf, options)) for name in (OURS, PLAIN)]
        if args.current is not None:
            sides += [running.enter_context(Side(name, args.hf, options, str(args.current))) for name in CURRENT]
        for batch in args.batch or [1, 16, 64]:
            results[batch] = compare(sides, clock, repeats, "generate", rows=batch)
    names = [side.name for side in sides]
    rows = []
    for batch, found in results.items():
        speeds = {name: batch * args.length / found[name]["median"] for name in names}
        for name in names:
            peak = found[name]["peak_gib"]
            ratios = speeds[name] / speeds[PLAIN], peak / found[PLAIN]["peak_gib"]
            rows.append([batch, name, speeds[name], ratios[0], peak, ratios[1]])
    columns = ["rows", "side", "tokens/s", "/ transformers", "peak GiB", "/ transformers"]
    time_of = "CPU" if args.cpu_time else "wall"
    title = f"Generation of {args.hf.name}, {time_of} time ({args.prompt} + {args.length} tokens)"
    figures = [{"rows": batch, "sides": found} for batch, found in results.items()]
    options["repeats"] = repeats
    report(title, [table(columns, rows)], {"options": options, "measured": figures}, args.out)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", help="rows decoded at once (512 64; with --hf 1 16 64)")
    parser.add_argument("--group", type=int, nargs="+", default=[8, 1], help="samples of each prompt")
    parser.add_argument("--repeats", type=int, help="rounds that count (9; with --hf 3)")
    parser.add_argument("--hf", type=Path, metavar="FOLDER", help="a Hugging Face folder to measure with")
    parser.add_argument(
        "--current", type=Path, metavar="PYTHON", help="with --hf: backend=megatron too, natively and with vLLM"
    )
    parser.add_argument("--prompt", type=int, default=64, help="with --hf: tokens of a prompt")
    parser.add_argument("--length", type=int, default=64, help="with --hf: tokens sampled")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU seconds: for a machine that is not quiet")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args, words = parser.parse_known_args()
    settle()
    if args.hf is not None:
        if words:
            parser.error(f"--hf takes its model from the folder, and no overrides: {' '.join(words)}")
        on_folder(args)
        return
    args.batch, args.repeats = args.batch or [512, 64], args.repeats or 9
    clock = time.process_time if args.cpu_time else time.perf_counter

    with tempfile.TemporaryDirectory() as folder:
        cfg, actor, prompt_length = build(words, Path(folder))
        length = cfg.actors.attacker.length_params.max_length
        decode, size = theirs(actor, length)
        if (own := sum(p.numel() for p in actor.parameters())) != size:
            raise AssertionError(f"the models differ in size: {own} parameters here, {size} in transformers")
        sides = {
            OURS: ours(actor, cfg, length),
            PLAIN: lambda prompts: decode(prompts, False),
            SAME: lambda prompts: decode(prompts, True),
        }
        results: dict[tuple[int, int], Any] = {}
        for batch, group in product(args.batch, args.group):
            prompts = prompts_of(batch, group, prompt_length, actor.chat.size)
            results[batch, group] = measure(sides, prompts, length, args.repeats, clock)
    rows = [
        [*sizes, *(speeds[name]["median"] for name in sides)]
        + [speeds[OURS]["median"] / speeds[name]["median"] for name in (PLAIN, SAME)]
        for sizes, speeds in results.items()
    ]
    columns = ["rows", "per prompt", "ours, tokens/s", "transformers", "with log-probabilities and texts"]
    text = table([*columns, "ours / transformers", "ours / transformers with those"], rows)
    shape = {key: actor.cfg[key] for key in ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")}
    shape |= {
        "vocabulary": actor.padded_vocab_size,
        "parameters": size,
        "prompt": prompt_length,
        "tokens_per_row": length,
    }
    title = (
        f"Generation, {'CPU' if args.cpu_time else 'wall'} time ("
        + ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in shape.items())
        + ")"
    )
    figures = [{"rows": batch, "group": group, "tokens_per_second": s} for (batch, group), s in results.items()]
    report(
        title,
        [text],
        {"model": shape, "repeats": args.repeats, "cpu_time": args.cpu_time, "measured": figures},
        args.out,
    )


if __name__ == "__main__":
    main()
