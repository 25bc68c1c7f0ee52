"""nemo-magic evaluate: the defender on benchmarks, as it would be published.

Left to other modules: what a benchmark is (catalogue, load_examples), who plays (setup), how examples are played and
judged (task_runner), and what is made of it (metrics, results).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from nemo_magic.config import MagicConfig
from nemo_magic.config.eval_config import EvalTaskConfig
from nemo_magic.config.locate_files import why_not_measured
from nemo_magic.evaluation.capability import Capability, read_capability
from nemo_magic.evaluation.defences import Defence, NoDefence, RunStats, SelfEval, SmoothLLM
from nemo_magic.evaluation.example import Example, expand_attempts
from nemo_magic.evaluation.load_examples import LoadedExamples
from nemo_magic.evaluation.load_tasks import load_task
from nemo_magic.evaluation.metrics import JudgedExample, MetricResult, belongs, measure
from nemo_magic.evaluation.progress import EvaluationProgress
from nemo_magic.evaluation.results import MARKDOWN_FILE, Results, read_outcomes
from nemo_magic.evaluation.setup import EvaluationSetup, build_setup
from nemo_magic.evaluation.task_runner import Attacker, TaskRunner
from nemo_magic.evaluation.transcripts import Transcript, remove_transcripts
from nemo_magic.game.episode import Role, Verdict
from nemo_magic.runtime.errors import Preempted
from nemo_magic.runtime.preemption import Preemption


def evaluate(cfg: MagicConfig) -> None:
    """Measure every task of ``eval.tasks`` that has a file, and leave table, figures and outcomes in the run's folder.

    What was answered or judged before, in this folder and with these models and settings, is not asked again.

    Raises:
        DataError: a benchmark's file, or the baseline, cannot be used. Nothing has been generated then.
        EvaluationError: judge or server were not to be had; the same command goes on.
        Preempted: the run was asked to end, or its time is over; the same command goes on.
    """
    baseline = None if cfg.eval.baseline is None else (cfg.eval.baseline, read_outcomes(cfg.eval.baseline))
    loaded = {name: load_task(cfg.eval, name) for name in cfg.eval.tasks_with_file}
    capability, capability_notes = _capability(cfg)
    folder = Path(cfg.exp_manager.explicit_log_dir)
    with ExitStack() as resources:
        setup = build_setup(cfg, folder, resources)
        preemption = resources.enter_context(setup.preemption)
        evaluation = _Evaluation(cfg, setup, preemption)
        for examples in loaded.values():
            setup.print(str(examples))
        figures: list[MetricResult] = []
        notes: list[str] = []
        counts = {
            name: len(_played(cfg, name, loaded[name])) * task.attack_count
            for name, task in cfg.eval.tasks_with_file.items()
        }
        with EvaluationProgress(counts, Console() if setup.ranks.is_main else None) as progress:
            for name, task in cfg.eval.tasks_with_file.items():
                task_figures, task_notes = evaluation.run(name, task, loaded[name], progress)
                figures += task_figures
                notes += [f"{name}: {note}" for note in [str(loaded[name].report), *loaded[name].notes, *task_notes]]
        notes += [f"{name}: {why_not_measured(cfg.eval, name)}" for name in cfg.eval.tasks if name not in loaded]
        notes += capability_notes
        if cfg.eval.defence.kind != "none":
            notes.append(f"defence: {cfg.eval.defence}")
        if count := setup.neutralised():
            notes.append(f"control tokens that messages spelled, read as text: {count}")
        generated, judged = setup.newly_asked()
        setup.print(f"newly generated: {generated} messages; newly judged: {judged} conversations")
        if setup.ranks.is_main:
            results = Results(
                f"{cfg.name}: {cfg.eval.model or 'the defender'}",
                cfg.eval.model,
                setup.guard,
                figures,
                notes,
                baseline,
                {"eval": asdict(cfg.eval), "defender": setup.identities.get(Role.DEFENDER)},
                capability,
            )
            results.save(folder)
            print(results.to_markdown() + f"\nin {folder / MARKDOWN_FILE}", flush=True)
        setup.ranks.all_gather(None)


class _Evaluation:
    def __init__(self, cfg: MagicConfig, setup: EvaluationSetup, preemption: Preemption) -> None:
        self._cfg, self._setup, self._preemption = cfg, setup, preemption

    def run(
        self, name: str, task: EvalTaskConfig, loaded: LoadedExamples, progress: EvaluationProgress
    ) -> tuple[list[MetricResult], list[str]]:
        """The figures of one task, and notes on how it was played."""
        cfg, ranks = self._cfg, self._setup.ranks
        known = _played(cfg, name, loaded)
        examples = expand_attempts(known, task.attack_count)
        transcript = self._transcript(name)
        runner = self._runner(task, transcript)
        own, verdicts = examples[ranks.dp_rank :: ranks.dp_size], dict[str, Verdict]()
        # Rank 0 has most examples; the others go on with it, with nothing to do.
        chunks = range(0, len(examples[:: ranks.dp_size]), cfg.eval.chunk_size)
        progress.begin(name)
        for start in chunks:
            if reason := self._preemption.reason():
                raise Preempted(
                    f"{reason}: {name} is written down up to case {start * ranks.dp_size} of {len(examples)}"
                )
            verdicts |= runner.play(own[start : start + cfg.eval.chunk_size])
            progress.advance(min(len(examples), (start + cfg.eval.chunk_size) * ranks.dp_size))
        transcript.close()
        parts = ranks.gather_data_parallel(ranks.broadcast_model_parallel((verdicts, runner.stats)))
        all_verdicts = {id: verdict for part, _ in parts for id, verdict in part.items()}
        judged = [JudgedExample(example, all_verdicts.get(example.id)) for example in examples]
        notes = _notes([stats for _, stats in parts], len(known))
        return [measure(name, figure, judged) for figure in cfg.eval.figures(name)], notes

    def _transcript(self, task: str) -> Transcript:
        folder, ranks = Path(self._cfg.exp_manager.explicit_log_dir), self._setup.ranks
        if ranks.is_main:
            remove_transcripts(folder, task)
        ranks.all_gather(None)
        return Transcript(folder, task, ranks.rank)

    def _runner(self, task: EvalTaskConfig, transcript: Transcript) -> TaskRunner:
        cfg, setup, stats = self._cfg, self._setup, RunStats()
        attacker = None
        if task.attacker != "none":
            seed = cfg.seed if task.attack_count > 1 else None
            attacker = Attacker(setup.policies[Role.ATTACKER], task.turn_count(cfg.game.max_turns), seed)
        defence = None if task.answers == "file" else self._defence(stats)
        fields = cfg.eval.fields()
        return TaskRunner(setup.ranks, defence, attacker, setup.judge, cfg.game.prompts, fields, stats, transcript)

    def _defence(self, stats: RunStats) -> Defence:
        cfg, setup, options = self._cfg, self._setup, self._cfg.eval.defence
        model = NoDefence(setup.policies[Role.DEFENDER], cfg.game.prompts, cfg.game.defender_cot, stats)
        if options.kind == "smoothllm":
            return SmoothLLM(options.smoothllm, model, setup.judge, setup.ranks, cfg.eval.fields(), cfg.seed)
        if options.kind == "self_eval":
            own = setup.evaluator is None
            return SelfEval(options.self_eval, model, setup.evaluator or model.policy, cot=model.cot and own)
        return model


def _capability(cfg: MagicConfig) -> tuple[list[Capability], list[str]]:
    """The results of lm-evaluation-harness and notes on them; nothing where no results are named."""
    options = cfg.eval.capability
    return ([], []) if options.results is None else read_capability(options.results, options.tasks, cfg.eval.model)


def _played(cfg: MagicConfig, name: str, loaded: LoadedExamples) -> list[Example]:
    """The examples of a task that any of its figures is over."""
    figures = cfg.eval.figures(name)
    return [example for example in loaded.examples if any(belongs(figure, example) for figure in figures)]


def _notes(parts: Sequence[RunStats], count: int) -> list[str]:
    """What happened to ``count`` examples, in words; nothing where nothing was out of the ordinary."""
    words = {
        "cut": "messages cut to what the defender can read",
        "unplayed": "cases longer than a role can read: unknown",
        "truncated": "answers longer than eval.max_judged_tokens, judged up to there",
        "ended": "attacks that ended before their last turn, as nobody could read on or they had no text there: judged "
        "as they stand",
        "broken_format": "rewrites without well-formed tags",
        "refused": "answers refused for the defender, as the evaluator called the exchange unsafe",
        "unreadable": "exchanges of which the evaluator said neither word",
        "undecided": "copies that had no vote: unreadable, unanswered, or of unknown verdict",
    }
    totals = {name: sum(getattr(stats, name) for stats in parts) for name in words}
    messages = sum((stats.messages for stats in parts), Counter[str]())
    notes = [f"{totals[name]} {text}" for name, text in words.items() if totals[name]]
    for reason, number in sum((stats.unanswered for stats in parts), Counter[str]()).most_common():
        notes.append(f"{number} cases without an answer: unknown ({reason})")
    if max(messages.values(), default=0) > count or messages["evaluator"]:
        share = ", ".join(f"{kind} {messages[kind] / count:.1f}" for kind in sorted(messages) if messages[kind])
        notes.append(f"messages and verdicts needed for a case: {share}")
    return notes
