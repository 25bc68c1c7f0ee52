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
from nemo_magic.actors.remote import RemoteSpeaker
from nemo_magic.config import MagicConfig, role_model
from nemo_magic.config.evaluation import evaluated_roles, needs_world
from nemo_magic.config.validation import models
from nemo_magic.data.errors import DataError
from nemo_magic.evaluation.bench import Bench
from nemo_magic.evaluation.capability import Capability, read_capability
from nemo_magic.evaluation.case import Case, attempts
from nemo_magic.evaluation.cases import Loaded, load_benchmark
from nemo_magic.evaluation.config import EvalTaskConfig
from nemo_magic.evaluation.defence_config import DefenceConfig
from nemo_magic.evaluation.defences import Defence, SelfEval, SmoothLLM, Tally, Undefended
from nemo_magic.evaluation.finding import why_not
from nemo_magic.evaluation.journal import Journal
from nemo_magic.evaluation.metrics import Judged, Measured, belongs, measure
from nemo_magic.evaluation.place import Alone, Place, together
from nemo_magic.evaluation.play import Attacker, Stage
from nemo_magic.evaluation.results import MARKDOWN_FILE, Results, read_outcomes
from nemo_magic.evaluation.transcripts import Transcript, forget
from nemo_magic.evaluation.voice import Voice
from nemo_magic.evaluation.weights import fingerprint
from nemo_magic.game.episode import Role, Verdict
from nemo_magic.judge.client import JudgeClient, refuse_incapable
from nemo_magic.training.errors import Preempted
from nemo_magic.training.evaluation_progress import EvaluationProgress
from nemo_magic.training.interruption import Interruption

if TYPE_CHECKING:
    from nemo_magic.actors.speaker import Speaker

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
        evaluation = _Evaluation(cfg, crew, open_.enter_context(Interruption(crew.place, cfg.exp_manager.max_seconds)))
        for text in loaded.values():
            crew.say(str(text))
        measured: list[Measured] = []
        notes: list[str] = []
        many = {
            name: len(_played(cfg, name, loaded[name])) * task.attack_count for name, task in cfg.eval.measured.items()
        }
        with EvaluationProgress(many, Console() if crew.place.is_main else None) as progress:
            for name, task in cfg.eval.measured.items():
                found, told = evaluation.run(name, task, loaded[name], progress)
                measured += found
                notes += [f"{name}: {note}" for note in [*_notes(loaded[name]), *told]]
        notes += [f"{name}: {why_not(cfg.eval, name)}" for name in cfg.eval.tasks if name not in loaded]
        notes += of_capability
        if cfg.eval.defence.kind != "none":
            notes.append(f"defence: {cfg.eval.defence}")
        voices = [*crew.voices.values(), *([crew.evaluator] if crew.evaluator else [])]
        news = crew.place.gather(crew.place.share((sum(voice.asked for voice in voices), crew.bench.asked)))
        generated, judged = (sum(column) for column in zip(*news, strict=True))
        crew.say(f"newly generated: {generated} messages; newly judged: {judged} conversations")
        if crew.place.is_main:
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
        crew.place.everyone(None)


@dataclass(frozen=True)
class _Crew:
    """Everyone who takes part. ``identities``: what each role's words depend on, beside what it is told; ``evaluator``:
    of Self-Eval, where it is not the defender itself."""

    place: Place
    voices: dict[Role, Voice]
    identities: dict[Role, Any]
    bench: Bench
    guard: str
    evaluator: Voice | None

    def say(self, text: str) -> None:
        if self.place.is_main:
            print(text, flush=True)


class _Evaluation:
    def __init__(self, cfg: MagicConfig, crew: _Crew, interruption: Interruption) -> None:
        self._cfg, self._crew, self._interruption = cfg, crew, interruption

    def run(
        self, name: str, task: EvalTaskConfig, loaded: Loaded, progress: EvaluationProgress
    ) -> tuple[list[Measured], list[str]]:
        """The figures of one task, and what is to be known of how it was played."""
        cfg, place = self._cfg, self._crew.place
        figures, known_cases = cfg.eval.figures(name), _played(cfg, name, loaded)
        asked, cases = len(known_cases), attempts(known_cases, task.attack_count)
        transcript = self._transcript(name)
        stage = self._stage(task, transcript)
        mine, verdicts = cases[place.dp_rank :: place.dp_size], dict[str, Verdict]()
        # Rank 0 has most cases; the others go on with it, with nothing to do.
        chunks = range(0, len(cases[:: place.dp_size]), cfg.eval.chunk_size)
        progress.begin(name)
        for start in chunks:
            if reason := self._interruption.reason():
                raise Preempted(f"{reason}: {name} is written down up to case {start * place.dp_size} of {len(cases)}")
            verdicts |= stage.play(mine[start : start + cfg.eval.chunk_size])
            progress.advance(min(len(cases), (start + cfg.eval.chunk_size) * place.dp_size))
        transcript.close()
        everyone = place.gather(place.share((verdicts, stage.tally)))
        known = {id: verdict for found, _ in everyone for id, verdict in found.items()}
        judged = [Judged(case, known.get(case.id)) for case in cases]
        told_of = _told([tally for _, tally in everyone], asked)
        return [measure(name, figure, judged) for figure in figures], told_of

    def _transcript(self, task: str) -> Transcript:
        folder, place = Path(self._cfg.exp_manager.explicit_log_dir), self._crew.place
        if place.is_main:
            forget(folder, task)
        place.everyone(None)
        return Transcript(folder, task, place.rank)

    def _stage(self, task: EvalTaskConfig, transcript: Transcript) -> Stage:
        cfg, crew, tally = self._cfg, self._crew, Tally()
        attacker = None
        if task.attacker != "none":
            seed = cfg.seed if task.attack_count > 1 else None
            attacker = Attacker(crew.voices[Role.ATTACKER], task.turn_count(cfg.game.max_turns), seed)
        defence = None if task.answers == "file" else self._defence(tally)
        return Stage(crew.place, defence, attacker, crew.bench, cfg.game.prompts, cfg.eval.fields(), tally, transcript)

    def _defence(self, tally: Tally) -> Defence:
        cfg, crew, options = self._cfg, self._crew, self._cfg.eval.defence
        model = Undefended(crew.voices[Role.DEFENDER], cfg.game.prompts, cfg.game.defender_cot, tally)
        if options.kind == "smoothllm":
            return SmoothLLM(options.smoothllm, model, crew.bench, crew.place, cfg.eval.fields(), cfg.seed)
        if options.kind == "self_eval":
            return SelfEval(
                options.self_eval, model, crew.evaluator or model.voice, cot=model.cot and not crew.evaluator
            )
        return model


def _capability(cfg: MagicConfig) -> tuple[list[Capability], list[str]]:
    """What lm-evaluation-harness found, and what is to be known of it; nothing where nobody says where that is."""
    wanted = cfg.eval.capability
    return ([], []) if wanted.results is None else read_capability(wanted.results, wanted.tasks, cfg.eval.model)


def _played(cfg: MagicConfig, name: str, loaded: Loaded) -> list[Case]:
    """The cases of a task that any of its figures is over."""
    figures = cfg.eval.figures(name)
    return [case for case in loaded.cases if any(belongs(figure, case) for figure in figures)]


def _load(cfg: MagicConfig, name: str, task: EvalTaskConfig) -> Loaded:
    assert task.file is not None
    key, answered = f"eval.tasks.{name}.file", task.answers == "file"
    loaded = load_benchmark(cfg.eval.benchmark_name(name), task.file, key, task.limit, answered)
    if task.attacker != "none" and any(len(case.turns) > 1 for case in loaded.cases):
        raise DataError(
            f"eval.tasks.{name}.attacker={task.attacker}: {task.file} holds conversations, and one message is rewritten"
        )
    return loaded


def _notes(loaded: Loaded) -> list[str]:
    return [str(loaded.report), *loaded.notes]


def _told(tallies: Sequence[Tally], cases: int) -> list[str]:
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
    place, speakers = _speakers(cfg, open_)
    journal = together(place, lambda: Journal(folder / ANSWERS, place.rank))
    identities = {role: _identity(cfg, role) for role in speakers}
    voices = {
        role: Voice(
            place,
            speaker,
            journal,
            identities[role],
            not cfg.actors.of(role).is_megatron,
            asdict(answering(cfg, role).sampling_params),
        )
        for role, speaker in speakers.items()
    }
    evaluator = _evaluator(cfg.eval.defence, place, journal, open_)

    def hire() -> tuple[JudgeClient, Journal, str]:
        client = open_.enter_context(JudgeClient(cfg.judge))
        info = client.wait_ready(cfg.judge.give_up_after)
        refuse_incapable(info, cfg.eval.fields())
        return client, Journal(folder / VERDICTS, place.rank), info.guard

    client, verdicts, guard = together(place, hire) or (None, None, "")
    return _Crew(place, voices, identities, Bench(place, client, verdicts, guard), place.share(guard), evaluator)


def _evaluator(defence: DefenceConfig, place: Place, journal: Journal | None, open_: ExitStack) -> Voice | None:
    """Self-Eval's evaluator, where a server is one."""
    server = defence.self_eval.evaluator
    if defence.kind != "self_eval" or not server.urls:
        return None
    lengths = LengthConfig(max_length=defence.self_eval.max_tokens, min_length=0)

    def connect() -> RemoteSpeaker:
        key = "eval.defence.self_eval.evaluator"
        options = ActorConfig(length_params=lengths, remote=server)
        speaker = open_.enter_context(RemoteSpeaker(options, key, clients=place.dp_size))
        speaker.wait_ready(server.give_up_after)
        return speaker

    speaker = together(place, connect)
    identity = {"evaluator": server.model, "extra_body": server.extra_body, "max_tokens": defence.self_eval.max_tokens}
    return Voice(place, speaker, journal, identity, remote=True)


def _speakers(cfg: MagicConfig, open_: ExitStack) -> tuple[Place, dict[Role, Speaker | None]]:
    """Build the models that are played here, and find the servers that play the others."""
    roles = evaluated_roles(cfg)
    place: Place = Alone()
    speakers: dict[Role, Speaker | None] = {}
    if needs_world(cfg):
        from nemo_magic.training.stage import local_speakers

        place, local = local_speakers(cfg, {role: answering(cfg, role) for role in roles}, open_.callback)
        speakers |= local
    for role in (role for role in roles if cfg.actors.of(role).hf_path):
        speakers[role] = _huggingface(cfg, role, place)
    for role in (role for role in roles if cfg.actors.of(role).is_remote):
        options = answering(cfg, role)

        def connect(options: ActorConfig = options, role: Role = role) -> RemoteSpeaker:
            speaker = open_.enter_context(RemoteSpeaker(options, f"actors.{role}.remote", clients=place.dp_size))
            speaker.wait_ready(options.remote.give_up_after)
            return speaker

        speakers[role] = together(place, connect)
    return place, speakers


def _huggingface(cfg: MagicConfig, role: Role, place: Place) -> Speaker:
    from nemo_magic.actors.huggingface import HuggingFaceSpeaker

    def read(speaks: bool) -> Speaker:
        options = answering(cfg, role)
        path = options.hf_path
        assert path is not None
        return HuggingFaceSpeaker(path, options, cfg.generation.batch_size, cfg.trainer.accelerator, speaks)

    return together(place, lambda: read(True)) or read(False)


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
