"""Checks of an evaluation's configuration, before a model is built or a file is read."""

from __future__ import annotations

from collections.abc import Iterator

from nemo_magic.actors.config import ActorConfig, is_hf_folder
from nemo_magic.config.eval_config import EvalTaskConfig
from nemo_magic.config.locate_files import why_not_measured
from nemo_magic.config.roles import server_problems
from nemo_magic.config.schema import MagicConfig
from nemo_magic.data.catalogue import RECORDED
from nemo_magic.game.episode import VERDICT_FIELDS, Role


def evaluated_roles(cfg: MagicConfig) -> tuple[Role, ...]:
    """The roles that generate something in ``nemo-magic evaluate``."""
    needed = {Role.ATTACKER: cfg.eval.needs_attacker, Role.DEFENDER: cfg.eval.needs_defender}
    return tuple(role for role in Role if needed[role])


def needs_world(cfg: MagicConfig) -> bool:
    """Whether there is a Megatron actor; where servers and Hugging Face models play all roles, one process does it all,
    without NeMo."""
    return any(cfg.actors.of(role).is_megatron for role in evaluated_roles(cfg))


def _place(cfg: MagicConfig) -> str:
    """Where it computes: on an accelerator only where a role is no server's."""
    roles = [cfg.actors.of(role) for role in evaluated_roles(cfg)]
    if needs_world(cfg):
        return f"on {cfg.trainer.accelerator}, {cfg.trainer.num_nodes} × {cfg.trainer.devices} ranks"
    local = [options for options in roles if not options.is_remote]
    devices = dict.fromkeys(options.hf.device or cfg.trainer.accelerator for options in local)
    return f"on {' and '.join(devices)}, one process" if local else "in one process, which asks servers"


def describe_evaluation(cfg: MagicConfig) -> str:
    """What ``nemo-magic evaluate`` will do, in a few lines for people."""
    lines = [f"{cfg.name}: nemo-magic evaluate {_place(cfg)}"]
    for role in evaluated_roles(cfg):
        options = cfg.actors.of(role)
        where = f"{options.remote.model} at {', '.join(options.remote.urls)}" if options.is_remote else None
        where = f"{options.hf_path}, by transformers" if options.hf_path else where
        lines.append(f"{role:<10}{where or options.restore_from_path or 'random weights'}, at temperature 0")
        if role is Role.ATTACKER and any(task.attack_count > 1 for task in cfg.eval.tasks_with_file.values()):
            lines[-1] += f", and at {options.sampling_params.temperature:g} where it attacks several times"
    for name, task in cfg.eval.tasks.items():
        how = _how(task, cfg.game.max_turns)
        limit = "" if task.limit is None else f", {task.limit} cases"
        detail = f"{task.file}, {how}{limit}" if task.file else why_not_measured(cfg.eval, name)
        lines.append(f"task      {name}: {detail}")
    if cfg.eval.defence.kind != "none":
        lines.append(f"defence   {cfg.eval.defence}")
    judge = f"{cfg.judge.guard}, started with the run" if cfg.judge.launch else ", ".join(cfg.judge.urls)
    lines.append(f"judge     {judge}; asked for {', '.join(sorted(cfg.eval.fields()))}")
    return "\n".join([*lines, f"output    {cfg.exp_manager.explicit_log_dir}"])


def _how(task: EvalTaskConfig, max_turns: int) -> str:
    if task.answers == "file":
        return "its own answers, only judged"
    if task.attacker == "none":
        return "as it stands"
    turns = task.turn_count(max_turns)
    attacked = "rewritten by the attacker" if turns == 1 else f"attacked for {turns} turns"
    return attacked if task.attack_count == 1 else f"{attacked}, {task.attack_count} times, sampled"


def evaluation_problems(cfg: MagicConfig) -> Iterator[str]:
    """One line for everything about ``eval`` and the roles' servers that is wrong."""
    yield from _tasks(cfg)
    for name in cfg.eval.extra_verdict_fields:
        if name not in VERDICT_FIELDS:
            yield f"eval.extra_verdict_fields={name!r} must be one of: {', '.join(VERDICT_FIELDS)}"
    for role in evaluated_roles(cfg):
        options = cfg.actors.of(role)
        if options.is_remote:
            yield from server_problems(options, role)
        yield from _huggingface(options, f"actors.{role}")
    if cfg.eval.defence.kind == "self_eval":
        evaluator = cfg.eval.defence.self_eval.evaluator
        if evaluator.urls and not evaluator.model:
            yield (
                f"eval.defence.self_eval.evaluator.urls={list(evaluator.urls)}: eval.defence.self_eval.evaluator.model "
                "has to be given, the model's name on that server"
            )
    length = cfg.actors.defender.length_params.max_length
    if cfg.game.defender_cot and cfg.eval.max_judged_tokens < length:
        yield (
            f"eval.max_judged_tokens={cfg.eval.max_judged_tokens} would cut off the answer of a defender that reasons "
            f"first (game.defender_cot=true): set it to actors.defender.length_params.max_length={length}"
        )


def _huggingface(options: ActorConfig, key: str) -> Iterator[str]:
    path = options.hf.path
    if path is None:
        return
    if options.is_remote or options.restore_from_path is not None:
        other = f"{key}.remote.urls=[]" if options.is_remote else f"{key}.restore_from_path=null"
        yield f"{key}.hf.path={path}: the role is played once, set {other}"
    if not is_hf_folder(path):
        yield f"{key}.hf.path={path} is no Hugging Face model: a folder with config.json and *.safetensors"


def _tasks(cfg: MagicConfig) -> Iterator[str]:
    if not cfg.eval.tasks_with_file:
        named = ", ".join(f"eval.tasks.{name}.file" for name in cfg.eval.tasks)
        folder = "their folder as eval.folder"
        if cfg.eval.folder is not None:
            folder = f"a file below eval.folder={cfg.eval.folder} a usual name (docs/evaluation.md)"
        yield (
            f"nothing is to be measured: give {named or 'eval.tasks.<name>.file'}, your own copy of a benchmark, or "
            f"{folder}"
        )
    for name, task in cfg.eval.tasks.items():
        try:
            benchmark = cfg.eval.benchmark(name)
        except ValueError as error:
            yield str(error)
            continue
        if task.answers == "file" and benchmark.reader not in RECORDED:
            yield (
                f"eval.tasks.{name}.answers=file: files of {benchmark.title} hold no answers, those of "
                f"{', '.join(RECORDED)} do; set answers=defender"
            )
        if task.turn_count(cfg.game.max_turns) == 1 and task.attacker == "multi_turn":
            yield (
                f"eval.tasks.{name}.attacker=multi_turn: game.max_turns={cfg.game.max_turns} is one turn, set "
                f"eval.tasks.{name}.turns, e.g. 3"
            )
