"""nemo-magic evaluate: the defender on benchmarks, as it would be published.

Left to nemo_magic/evaluation: what a benchmark is (catalogue, cases), how cases are played and judged (play), what was
asked before (journal), and what is made of it (metrics, results). Here: who plays, and in what order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from nemo_magic.actors.config import ActorConfig, LengthConfig
from nemo_magic.config import MagicConfig, role_model
from nemo_magic.config.defence import DefenceConfig
from nemo_magic.config.eval_config import EvalTaskConfig
from nemo_magic.config.evaluation import evaluated_roles, needs_world
from nemo_magic.config.locate_files import why_not
from nemo_magic.config.validation import models
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.cached_judge import CachedJudge
from nemo_magic.evaluation.capability import Capability, read_capability
from nemo_magic.evaluation.defences import Defence, NoDefence, RunStats, SelfEval, SmoothLLM
from nemo_magic.evaluation.example import Example, attempts
from nemo_magic.evaluation.fingerprint import fingerprint
from nemo_magic.evaluation.load_examples import LoadedExamples, load_benchmark
from nemo_magic.evaluation.metrics import Judged, Measured, belongs, measure
from nemo_magic.evaluation.progress import EvaluationProgress
from nemo_magic.evaluation.results import MARKDOWN_FILE, Results, read_outcomes
from nemo_magic.evaluation.task_runner import Attacker, TaskRunner
from nemo_magic.evaluation.transcripts import Transcript, forget
from nemo_magic.game.episode import Role, Verdict
from nemo_magic.judge.client import JudgeClient, refuse_incapable
from nemo_magic.rollout.cached import CachedPolicy
from nemo_magic.rollout.rank_group import RankGroup, SingleProcess, run_on_all
from nemo_magic.rollout.remote import RemotePolicy
from nemo_magic.rollout.response_cache import ResponseCache
from nemo_magic.runtime.errors import Preempted
from nemo_magic.runtime.preemption import Preemption

if TYPE_CHECKING:
    from nemo_magic.rollout.policy import Policy

ANSWERS, VERDICTS = "answers", "verdicts"


def evaluate(cfg: MagicConfig) -> None:
    """Measure every task of ``eval.tasks`` that has a file, and leave table, figures and outcomes in the run's folder.

    What was answered or judged before, in this folder and with these models and settings, is not asked again.

    Raises:
        DataError: a benchmark's file, or the baseline, cannot be used. Nothing has been generated then.
        EvaluationError: judge or server were not to be had; the same command goes on.
        Preempted: the run was asked to end, or its time is over; the same command goes on.
    """
    baseline = None if cfg.eval.baseline is None else (cfg.eval.baseline, read_outcomes(cfg.eval.baseline))
    loaded = {name: _load(cfg, name, task) for name, task in cfg.eval.measured.items()}
    capability, of_capability = _capability(cfg)
    folder = Path(cfg.exp_manager.explicit_log_dir)
    with ExitStack() as open_:
        crew = _crew(cfg, folder, open_)
        evaluation = _Evaluation(cfg, crew, open_.enter_context(Preemption(crew.world, cfg.exp_manager.max_seconds)))
        for text in loaded.values():
            crew.say(str(text))
        measured: list[Measured] = []
        notes: list[str] = []
        many = {
            name: len(_played(cfg, name, loaded[name])) * task.attack_count for name, task in cfg.eval.measured.items()
        }
        with EvaluationProgress(many, Console() if crew.world.is_main else None) as progress:
            for name, task in cfg.eval.measured.items():
                found, told = evaluation.run(name, task, loaded[name], progress)
                measured += found
                notes += [f"{name}: {note}" for note in [*_notes(loaded[name]), *told]]
        notes += [f"{name}: {why_not(cfg.eval, name)}" for name in cfg.eval.tasks if name not in loaded]
        notes += of_capability
        if cfg.eval.defence.kind != "none":
            notes.append(f"defence: {cfg.eval.defence}")
        voices = [*crew.voices.values(), *([crew.evaluator] if crew.evaluator else [])]
        news = crew.world.gather_data_parallel(
            crew.world.broadcast_model_parallel((sum(voice.asked for voice in voices), crew.bench.asked))
        )
        generated, judged = (sum(column) for column in zip(*news, strict=True))
        crew.say(f"newly generated: {generated} messages; newly judged: {judged} conversations")
        if crew.world.is_main:
            results = Results(
                f"{cfg.name}: {cfg.eval.model or 'the defender'}",
                cfg.eval.model,
                crew.guard,
                measured,
                notes,
                baseline,
                {"eval": asdict(cfg.eval), "defender": crew.identities.get(Role.DEFENDER)},
                capability,
            )
            results.save(folder)
            print(results.to_markdown() + f"\nin {folder / MARKDOWN_FILE}", flush=True)
        crew.world.all_gather(None)


@dataclass(frozen=True)
class _Crew:
    """Everyone who takes part. ``identities``: what each role's words depend on, beside what it is told; ``evaluator``:
    of Self-Eval, where it is not the defender itself."""

    world: RankGroup
    voices: dict[Role, CachedPolicy]
    identities: dict[Role, Any]
    bench: CachedJudge
    guard: str
    evaluator: CachedPolicy | None

    def say(self, text: str) -> None:
        if self.world.is_main:
            print(text, flush=True)


class _Evaluation:
    def __init__(self, cfg: MagicConfig, crew: _Crew, preemption: Preemption) -> None:
        self._cfg, self._crew, self._preemption = cfg, crew, preemption

    def run(
        self, name: str, task: EvalTaskConfig, loaded: LoadedExamples, progress: EvaluationProgress
    ) -> tuple[list[Measured], list[str]]:
        """The figures of one task, and what is to be known of how it was played."""
        cfg, world = self._cfg, self._crew.world
        figures, known_cases = cfg.eval.figures(name), _played(cfg, name, loaded)
        asked, cases = len(known_cases), attempts(known_cases, task.attack_count)
        transcript = self._transcript(name)
        stage = self._stage(task, transcript)
        mine, verdicts = cases[world.dp_rank :: world.dp_size], dict[str, Verdict]()
        # Rank 0 has most cases; the others go on with it, with nothing to do.
        chunks = range(0, len(cases[:: world.dp_size]), cfg.eval.chunk_size)
        progress.begin(name)
        for start in chunks:
            if reason := self._preemption.reason():
                raise Preempted(f"{reason}: {name} is written down up to case {start * world.dp_size} of {len(cases)}")
            verdicts |= stage.play(mine[start : start + cfg.eval.chunk_size])
            progress.advance(min(len(cases), (start + cfg.eval.chunk_size) * world.dp_size))
        transcript.close()
        everyone = world.gather_data_parallel(world.broadcast_model_parallel((verdicts, stage.tally)))
        known = {id: verdict for found, _ in everyone for id, verdict in found.items()}
        judged = [Judged(case, known.get(case.id)) for case in cases]
        told_of = _told([tally for _, tally in everyone], asked)
        return [measure(name, figure, judged) for figure in figures], told_of

    def _transcript(self, task: str) -> Transcript:
        folder, world = Path(self._cfg.exp_manager.explicit_log_dir), self._crew.world
        if world.is_main:
            forget(folder, task)
        world.all_gather(None)
        return Transcript(folder, task, world.rank)

    def _stage(self, task: EvalTaskConfig, transcript: Transcript) -> TaskRunner:
        cfg, crew, tally = self._cfg, self._crew, RunStats()
        attacker = None
        if task.attacker != "none":
            seed = cfg.seed if task.attack_count > 1 else None
            attacker = Attacker(crew.voices[Role.ATTACKER], task.turn_count(cfg.game.max_turns), seed)
        defence = None if task.answers == "file" else self._defence(tally)
        return TaskRunner(
            crew.world, defence, attacker, crew.bench, cfg.game.prompts, cfg.eval.fields(), tally, transcript
        )

    def _defence(self, tally: RunStats) -> Defence:
        cfg, crew, options = self._cfg, self._crew, self._cfg.eval.defence
        model = NoDefence(crew.voices[Role.DEFENDER], cfg.game.prompts, cfg.game.defender_cot, tally)
        if options.kind == "smoothllm":
            return SmoothLLM(options.smoothllm, model, crew.bench, crew.world, cfg.eval.fields(), cfg.seed)
        if options.kind == "self_eval":
            return SelfEval(
                options.self_eval, model, crew.evaluator or model.voice, cot=model.cot and not crew.evaluator
            )
        return model


def _capability(cfg: MagicConfig) -> tuple[list[Capability], list[str]]:
    """What lm-evaluation-harness found, and what is to be known of it; nothing where nobody says where that is."""
    wanted = cfg.eval.capability
    return ([], []) if wanted.results is None else read_capability(wanted.results, wanted.tasks, cfg.eval.model)


def _played(cfg: MagicConfig, name: str, loaded: LoadedExamples) -> list[Example]:
    """The cases of a task that any of its figures is over."""
    figures = cfg.eval.figures(name)
    return [case for case in loaded.cases if any(belongs(figure, case) for figure in figures)]


def _load(cfg: MagicConfig, name: str, task: EvalTaskConfig) -> LoadedExamples:
    assert task.file is not None
    key, answered = f"eval.tasks.{name}.file", task.answers == "file"
    loaded = load_benchmark(cfg.eval.benchmark_name(name), task.file, key, task.limit, answered)
    if task.attacker != "none" and any(len(case.turns) > 1 for case in loaded.cases):
        raise DataError(
            f"eval.tasks.{name}.attacker={task.attacker}: {task.file} holds conversations, and one message is rewritten"
        )
    return loaded


def _notes(loaded: LoadedExamples) -> list[str]:
    return [str(loaded.report), *loaded.notes]


def _told(tallies: Sequence[RunStats], cases: int) -> list[str]:
    """What became of the cases, in words; nothing where nothing was out of the ordinary."""
    words = {
        "cut": "messages cut to what the defender can read",
        "unplayed": "cases longer than a role can read: unknown",
        "truncated": "answers longer than eval.max_judged_tokens, judged up to there",
        "ended": "attacks that ended before their last turn, as nobody could read on: judged as they stand",
        "broken_format": "rewrites without well-formed tags",
        "refused": "answers refused for the defender, as the evaluator called the exchange unsafe",
        "unreadable": "exchanges of which the evaluator said neither word",
        "undecided": "copies that had no vote: unreadable, or of unknown verdict",
    }
    totals = {name: sum(getattr(tally, name) for tally in tallies) for name in words}
    messages = sum((tally.messages for tally in tallies), Counter[str]())
    told = [f"{totals[name]} {text}" for name, text in words.items() if totals[name]]
    if max(messages.values(), default=0) > cases or messages["evaluator"]:
        share = ", ".join(f"{who} {messages[who] / cases:.1f}" for who in sorted(messages) if messages[who])
        told.append(f"messages and verdicts needed for a case: {share}")
    return told


def _crew(cfg: MagicConfig, folder: Path, open_: ExitStack) -> _Crew:
    world, policies = _policies(cfg, open_)
    cache = run_on_all(world, lambda: ResponseCache(folder / ANSWERS, world.rank))
    identities = {role: _identity(cfg, role) for role in policies}
    voices = {
        role: CachedPolicy(
            world,
            policy,
            cache,
            identities[role],
            not cfg.actors.of(role).is_megatron,
            asdict(answering(cfg, role).sampling_params),
        )
        for role, policy in policies.items()
    }
    evaluator = _evaluator(cfg.eval.defence, world, cache, open_)

    def hire() -> tuple[JudgeClient, ResponseCache, str]:
        client = open_.enter_context(JudgeClient(cfg.judge))
        info = client.wait_ready(cfg.judge.give_up_after)
        refuse_incapable(info, cfg.eval.fields())
        return client, ResponseCache(folder / VERDICTS, world.rank), info.guard

    client, verdicts, guard = run_on_all(world, hire) or (None, None, "")
    return _Crew(
        world,
        voices,
        identities,
        CachedJudge(world, client, verdicts, guard),
        world.broadcast_model_parallel(guard),
        evaluator,
    )


def _evaluator(
    defence: DefenceConfig, world: RankGroup, cache: ResponseCache | None, open_: ExitStack
) -> CachedPolicy | None:
    """Self-Eval's evaluator, where a server is one."""
    server = defence.self_eval.evaluator
    if defence.kind != "self_eval" or not server.urls:
        return None
    lengths = LengthConfig(max_length=defence.self_eval.max_tokens, min_length=0)

    def connect() -> RemotePolicy:
        key = "eval.defence.self_eval.evaluator"
        options = ActorConfig(length_params=lengths, remote=server)
        policy = open_.enter_context(RemotePolicy(options, key, clients=world.dp_size))
        policy.wait_ready(server.give_up_after)
        return policy

    policy = run_on_all(world, connect)
    identity = {"evaluator": server.model, "extra_body": server.extra_body, "max_tokens": defence.self_eval.max_tokens}
    return CachedPolicy(world, policy, cache, identity, remote=True)


def _policies(cfg: MagicConfig, open_: ExitStack) -> tuple[RankGroup, dict[Role, Policy | None]]:
    """Build the models that are played here, and find the servers that play the others."""
    roles = evaluated_roles(cfg)
    world: RankGroup = SingleProcess()
    policies: dict[Role, Policy | None] = {}
    if needs_world(cfg):
        from nemo_magic.rollout.local_policies import local_speakers

        world, local = local_speakers(cfg, {role: answering(cfg, role) for role in roles}, open_.callback)
        policies |= local
    for role in (role for role in roles if cfg.actors.of(role).hf_path):
        policies[role] = _huggingface(cfg, role, world)
    for role in (role for role in roles if cfg.actors.of(role).is_remote):
        options = answering(cfg, role)

        def connect(options: ActorConfig = options, role: Role = role) -> RemotePolicy:
            policy = open_.enter_context(RemotePolicy(options, f"actors.{role}.remote", clients=world.dp_size))
            policy.wait_ready(options.remote.give_up_after)
            return policy

        policies[role] = run_on_all(world, connect)
    return world, policies


def _huggingface(cfg: MagicConfig, role: Role, world: RankGroup) -> Policy:
    from nemo_magic.rollout.huggingface import HuggingFacePolicy

    def read(speaks: bool) -> Policy:
        options = answering(cfg, role)
        path = options.hf_path
        assert path is not None
        return HuggingFacePolicy(path, options, cfg.generation.batch_size, cfg.trainer.accelerator, speaks)

    return run_on_all(world, lambda: read(True)) or read(False)


def answering(cfg: MagicConfig, role: Role) -> ActorConfig:
    """The role's options in an evaluation. At temperature 0 the first tokens of an answer do not depend on how long it
    may become: of the defender's, those that will not be judged are not generated either."""
    options, limits = cfg.actors.of(role), cfg.actors.of(role).length_params
    if role is Role.ATTACKER or limits.max_length <= cfg.eval.max_judged_tokens:
        return options
    length = cfg.eval.max_judged_tokens
    room = None if options.is_remote else limits.max_prompt_length
    if options.is_megatron:
        room = limits.prompt_room(role_model(cfg, role).encoder_seq_length)
    shorter = replace(limits, max_length=length, min_length=min(length, limits.min_length), max_prompt_length=room)
    return replace(options, length_params=shorter)


def _identity(cfg: MagicConfig, role: Role) -> dict[str, Any]:
    """What a role's words at temperature 0 depend on beside the chat, as JSON.

    A server is known by its model's name only; weights that it swaps under that name are not noticed.
    """
    options = answering(cfg, role)
    settings = {
        "length_params": asdict(options.length_params),
        "end_strings": list(options.sampling_params.end_strings),
    }
    if options.is_remote:
        return {"role": str(role), "remote": options.remote.model, "extra_body": options.remote.extra_body, **settings}
    if path := options.hf_path:
        return {"role": str(role), "hf": fingerprint(path), "dtype": options.hf.dtype, **settings}
    model = asdict(models(cfg, "evaluate")[role])
    for key in _NOT_OF_THE_MODEL:
        model.pop(key, None)
    weights = fingerprint(options.restore_from_path) or f"random, seed {cfg.seed}"
    return {"role": str(role), "weights": weights, "model": model, "precision": cfg.trainer.precision, **settings}


_NOT_OF_THE_MODEL = (
    "optim",
    "micro_batch_size",
    "global_batch_size",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "sequence_parallel",
)
"""Where it runs and how it learns: its answers are its own at any layout."""
