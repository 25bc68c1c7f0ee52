"""``nemo-magic judge-check FILE``: how good running judges are on a labelled file. Imports neither torch nor NeMo."""

from __future__ import annotations

import argparse

from nemo_magic.config.errors import ConfigError
from nemo_magic.judge.check import check, read_labelled, summary
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.config import JudgeConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file, the judges, and how to ask them."""
    parser.add_argument("file", metavar="FILE", help="prompt, response, and a column per labelled field of a verdict")
    parser.add_argument("--judge", metavar="URL", action="append", required=True, help="given twice: κ of the two")
    parser.add_argument("--token-env", metavar="NAME", help="the environment variable that holds their token")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="rows a request (64)")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="requests at once (4)")


def run(args: argparse.Namespace) -> int:
    """Have every judge judge the file, and print how they agree with it and with each other.

    Raises:
        ConfigError: more than two judges, or an address or token that cannot be used.
        DataError: the file cannot be used.
        JudgeError: a judge does not answer.
    """
    if len(args.judge) > 2:
        raise ConfigError("--judge is given at most twice")
    rows, report = read_labelled(args.file)
    print(f"{args.file}: {report}", flush=True)
    runs = []
    for url in args.judge:
        try:
            settings = JudgeConfig(urls=[url], token_env=args.token_env, batch_size=args.batch)
            client = JudgeClient(settings)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        with client:
            runs.append(check(client, rows, args.batch, args.parallel))
    print(f"\n{summary(rows, runs)}")
    return 0
