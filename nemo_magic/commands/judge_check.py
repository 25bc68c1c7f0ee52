"""``nemo-magic judge-check``: how good running judges are on a labelled file, or whether one speaks the protocol.

Imports neither torch nor NeMo.
"""

from __future__ import annotations

import argparse

from nemo_magic.config.errors import ConfigError
from nemo_magic.judge.check import check, read_labelled, summary
from nemo_magic.judge.client import JudgeClient
from nemo_magic.judge.config import JudgeConfig
from nemo_magic.judge.conformance import check_protocol


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The file and the judges, or the judge whose protocol is checked, and how to ask them."""
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="prompt, response, and a column per labelled field of a verdict"
    )
    parser.add_argument("--judge", metavar="URL", action="append", default=[], help="given twice: κ of the two")
    parser.add_argument(
        "--protocol",
        metavar="URL",
        help="instead of FILE and --judge: whether this judge speaks the /v1/judge protocol",
    )
    parser.add_argument("--token-env", metavar="NAME", help="the environment variable that holds their token")
    parser.add_argument("--batch", type=int, default=64, metavar="N", help="rows a request (64)")
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="requests at once (4)")


def run(args: argparse.Namespace) -> int:
    """Have every judge judge the file, and print how they agree with it and with each other; or with ``--protocol``
    print a line for each check of the protocol.

    Raises:
        ConfigError: more or less judges than are taken, or an address or token that cannot be used.
        DataError: the file cannot be used.
        JudgeError: a judge does not answer.
    """
    if args.parallel < 1:
        raise ConfigError(f"--parallel {args.parallel} must be at least 1")
    if args.protocol is not None:
        if args.file is not None or args.judge:
            raise ConfigError("--protocol URL takes neither FILE nor --judge: it asks that judge texts of its own")
        return _check_protocol(args)
    if args.file is None or not args.judge:
        raise ConfigError("give FILE and --judge URL, or --protocol URL")
    if len(args.judge) > 2:
        raise ConfigError("--judge is given at most twice")
    rows, report = read_labelled(args.file)
    print(f"{args.file}: {report}", flush=True)
    runs = []
    for url in args.judge:
        try:
            client = JudgeClient(_settings(args, url))
        except ValueError as error:
            raise ConfigError(str(error)) from error
        with client:
            runs.append(check(client, rows, args.batch, args.parallel))
    print(f"\n{summary(rows, runs)}")
    return 0


def _check_protocol(args: argparse.Namespace) -> int:
    try:
        settings = _settings(args, args.protocol)
        settings.token()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    failed = total = 0
    for one in check_protocol(settings, args.parallel):
        print(one.line, flush=True)
        total += 1
        failed += one.problem is not None
    print(f"\n{total - failed} of {total} checks ok" + ("; see docs/judge_protocol.md" if failed else ""))
    return int(failed > 0)


def _settings(args: argparse.Namespace, url: str) -> JudgeConfig:
    return JudgeConfig(urls=[url], token_env=args.token_env, batch_size=args.batch)
