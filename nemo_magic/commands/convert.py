"""``nemo-magic convert hf-to-nemo | nemo-to-hf``. Imports torch once it is run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_magic.commands.config_arguments import add_trust_weights

if TYPE_CHECKING:
    Ways = argparse._SubParsersAction[argparse.ArgumentParser]

_ROLES = ("attacker", "defender")
_DTYPES = ("bf16", "fp16", "fp32")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A way, hf-to-nemo or nemo-to-hf, and what it takes."""
    ways = parser.add_subparsers(dest="way", required=True, metavar="{hf-to-nemo,nemo-to-hf}")
    to_nemo = _add_way(
        ways, "hf-to-nemo", "a folder of Hugging Face (Llama, Qwen2) becomes starting weights of an actor"
    )
    to_nemo.add_argument("source", metavar="SOURCE", type=Path, help="config.json, *.safetensors and tokenizer files")
    to_nemo.add_argument("target", metavar="TARGET", type=Path, help="a new folder, or a new file that ends in .nemo")
    to_nemo.add_argument(
        "--base", metavar="BASE", type=Path, help="SOURCE holds PEFT's adapters on BASE, converted weights"
    )
    to_hf = _add_way(ways, "nemo-to-hf", "weights of a run become a folder of Hugging Face")
    to_hf.add_argument(
        "source",
        metavar="SOURCE",
        type=Path,
        help="a run, its weights, one of its checkpoints or snapshots, what hf-to-nemo wrote, or a .nemo file",
    )
    to_hf.add_argument("target", metavar="TARGET", type=Path, help="a new folder")
    to_hf.add_argument("--role", choices=_ROLES, help="whose weights, where there are both")
    to_hf.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="of a safetensors file (5GB)")
    add_trust_weights(to_hf)
    to_hf.add_argument("--adapter", action="store_true", help="adapters alone, in PEFT's format; else merged weights")
    to_hf.add_argument("--base", type=Path, metavar="BASE", help="where the base of adapters is now")
    to_hf.add_argument("--base-name", metavar="NAME", help="with --adapter: the published base, such as its hub name")
    to_hf.add_argument("--hf-config", type=Path, metavar="FOLDER", help="of the config.json that the model came with")
    for way in (to_nemo, to_hf):
        way.add_argument("--dtype", choices=_DTYPES, help="of the result; by default as it is")


def run(args: argparse.Namespace) -> int:
    """Convert. Raises ConvertError for what cannot be."""
    if args.way == "hf-to-nemo" and args.base is not None:
        from nemo_magic.convert.peft_to_nemo import peft_to_nemo

        peft_to_nemo(args.source, args.target, args.base, args.dtype, _print)
    elif args.way == "hf-to-nemo":
        from nemo_magic.convert.hf_to_nemo import hf_to_nemo

        hf_to_nemo(args.source, args.target, args.dtype, _print)
    else:
        from nemo_magic.convert.nemo_to_hf import nemo_to_hf

        options = (args.role, args.dtype, args.max_shard_size, args.hf_config, _print, args.trust_weights)
        nemo_to_hf(args.source, args.target, *options, args.base, args.adapter, args.base_name)
    return 0


def _add_way(ways: Ways, name: str, about: str) -> argparse.ArgumentParser:
    return ways.add_parser(name, help=about, description=about, allow_abbrev=False)


def _print(text: str) -> None:
    print(text, flush=True)
