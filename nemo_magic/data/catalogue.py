"""The benchmarks: the columns of their files, what their rows are, and the figures that are measured on them.

No row of any benchmark is here; files are the user's own. docs/evaluation.md has this table for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nemo_magic.backports import StrEnum
from nemo_magic.data.seeds import ID_COLUMNS, LABEL_COLUMNS, TEXT_COLUMNS
from nemo_magic.game.episode import Label


class Event(StrEnum):
    """What the published evaluation code looks for in a verdict."""

    HARM = "harm"
    REFUSAL = "refusal"
    COMPLIANCE = "compliance"

    @property
    def field(self) -> str:
        """The field of the verdict that it reads."""
        return "response_safety" if self is Event.HARM else "refusal"


class Metric(StrEnum):
    """The event that is counted in a judged answer."""

    ASR = "asr"
    REFUSAL = "refusal"
    COMPLIANCE = "compliance"
    OVER_REFUSAL = "over_refusal"
    USEFUL = "useful"

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it makes a better defender."""
        return self in (Metric.REFUSAL, Metric.COMPLIANCE, Metric.USEFUL)

    @property
    def field(self) -> str:
        """The field of the verdict that it needs."""
        return {"asr": "response_safety", "useful": "helpful"}.get(self.value, "refusal")


@dataclass(frozen=True)
class PublishedRule:
    """How the published evaluation code counts a figure, where ``eval.protocol=magic``: ``event``, by the verdict's
    field that it reads there, and what an ``unknown`` verdict counts as. ``controversial`` is no harm to it."""

    event: Event
    unknown: bool


@dataclass(frozen=True)
class Figure:
    """One row of the table of results: ``metric`` over the examples of one ``label`` and, where given, of those
    whose adversarial flag is ``adversarial``.

    ``any_of``: a behaviour counts once, as attacked with success if any of its examples is; ``attempts`` is how many
    examples a behaviour should have. ``best_of``: an example counts once, attacked so many times. ``published``: its
    name in the published tables. ``magic``: how the published code counts it; None where ours does.
    """

    metric: Metric
    label: Label = Label.HARMFUL
    adversarial: bool | None = None
    any_of: bool = False
    attempts: int = 0
    published: str | None = None
    best_of: int = 0
    magic: PublishedRule | None = None

    @property
    def field(self) -> str:
        """The field of the verdict that it needs."""
        return self.metric.field if self.magic is None else self.magic.event.field

    @property
    def name(self) -> str:
        """A name for people, unique within a benchmark."""
        kind = {True: "adversarial ", False: "vanilla ", None: ""}[self.adversarial]
        any_of = f", any of {self.attempts}" if self.any_of and self.attempts else ", any" if self.any_of else ""
        best_of = f", best of {self.best_of}" if self.best_of else ""
        return f"{kind}{self.label} {self.metric.value.replace('_', '-')}{any_of}{best_of}"


@dataclass(frozen=True)
class Benchmark:
    """How a benchmark's file is read. ``columns``: field of an example → names its column may have, the first one that
    is there; those in ``required`` have to be. ``label``: what every row is, where no column says so; ``prefixes``:
    what the beginning of ``category`` says where no label column does. ``expected``: published numbers of rows and the
    like. ``reader``: ``rows``, ``cases`` (HarmBench's precomputed ones), ``plans`` (X-Teaming) or one of RECORDED.
    ``files``: what its file is usually called, in lower case, as shell patterns of the end of its path. ``halves``:
    names of two files that lie beside each other without a label column, and what each one's rows are. ``others``:
    columns that only another file has, and which one that is. ``vanilla``: labels whose rows the published code shows
    the judge as ``request``, not as they were asked.
    """

    title: str
    columns: Mapping[str, tuple[str, ...]]
    required: tuple[str, ...]
    figures: tuple[Figure, ...]
    expected: Mapping[str, int] = field(default_factory=dict)
    label: Label | None = None
    prefixes: tuple[tuple[str, Label], ...] = ()
    reader: str = "rows"
    files: tuple[str, ...] = ()
    halves: Mapping[str, Label] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)
    vanilla: tuple[Label, ...] = ()


RECORDED = ("garak", "jailbreakbench_artifacts", "openrt", "pyrit")
"""Readers of red-teaming tools' files: attacks, and the answers of the models that were attacked."""

_HARM, _HARM_IF_UNKNOWN = PublishedRule(Event.HARM, False), PublishedRule(Event.HARM, True)
_COMPLIANCE, _COMPLIANCE_IF_UNKNOWN = PublishedRule(Event.COMPLIANCE, False), PublishedRule(Event.COMPLIANCE, True)
_REFUSAL, _REFUSAL_IF_UNKNOWN = PublishedRule(Event.REFUSAL, False), PublishedRule(Event.REFUSAL, True)

_HARMFUL_ASR = (Figure(Metric.ASR),)
_BENIGN = (Figure(Metric.COMPLIANCE, Label.BENIGN),)

BENCHMARKS: dict[str, Benchmark] = {
    "harmbench": Benchmark(
        "HarmBench, vanilla",
        {
            "text": ("behavior",),
            "id": ("behaviorid",),
            "category": ("semanticcategory",),
            "method": ("functionalcategory",),
            "context": ("contextstring",),
        },
        ("text", "id", "category"),
        (Figure(Metric.ASR, published="HarmBench vanilla", magic=_HARM),),
        {"rows": 320},
        Label.HARMFUL,
        files=("harmbench_behaviors_text_test.csv",),
        others={
            "imagefilename": "HarmBench's multimodal behaviours",
            "generation": "HarmBench's completions",
            "test_case": "HarmBench's precomputed cases",
        },
    ),
    "harmbench_adversarial": Benchmark(
        "HarmBench, precomputed cases",
        {
            "text": ("test_case", "testcase"),
            "behaviour": ("behaviorid", "behavior_id"),
            "method": ("method", "attack"),
            "request": ("behavior",),
            "category": ("semanticcategory",),
        },
        ("text", "behaviour", "method"),
        (
            Figure(Metric.ASR, published="HarmBench adversarial", magic=_HARM),
            Figure(Metric.ASR, any_of=True, magic=_HARM),
        ),
        {"methods": 15},
        Label.HARMFUL,
        reader="cases",
        files=("harmbench*/test_cases.json", "harmbench*test_cases.csv", "harmbench_percomputed_attacks.json"),
    ),
    "wildguardtest": Benchmark(
        "WildGuardTest",
        {
            "text": ("prompt",),
            "label": ("prompt_harm_label",),
            "adversarial": ("adversarial",),
            "category": ("subcategory",),
            "refusal_label": ("response_refusal_label",),
            "harm_label": ("response_harm_label",),
        },
        ("text", "label", "adversarial", "refusal_label", "harm_label"),
        (
            Figure(Metric.ASR, adversarial=True, published="WildGuardTest adversarial", magic=_HARM_IF_UNKNOWN),
            Figure(Metric.ASR, adversarial=False, magic=_HARM_IF_UNKNOWN),
            *_BENIGN,
        ),
        {"rows": 1725, "without a label": 26},
        files=("wildguard_test.parquet", "wildguardtest_data.csv"),
    ),
    "wildjailbreak": Benchmark(
        "WildJailbreak, eval",
        {
            "text": ("adversarial",),
            "label": ("data_type", "label"),
            "request": ("vanilla",),
            "id": ID_COLUMNS,
        },
        ("text", "label"),
        (
            Figure(Metric.ASR, published="WildJailbreak", magic=_COMPLIANCE),
            Figure(Metric.COMPLIANCE, Label.BENIGN, published="WildJailbreak benign", magic=_COMPLIANCE),
        ),
        {"harmful": 2000, "benign": 250},
        files=("eval/eval.tsv", "wildjailbreak/harmful.jsonl"),
        halves={"harmful.jsonl": Label.HARMFUL, "benign.jsonl": Label.BENIGN},
        vanilla=(Label.HARMFUL,),
    ),
    "dan": Benchmark(
        "Do Anything Now",
        {
            "text": ("adversarial", "prompt", "jailbreak_prompt", "test_case"),
            "request": ("vanilla", "question", "goal", "forbidden_question"),
            "category": ("content_policy_name", "category", "semanticcategory"),
            "method": ("community", "community_name", "source", "platform"),
            "id": ID_COLUMNS,
        },
        ("text",),
        (Figure(Metric.ASR, published="DAN", magic=_COMPLIANCE),),
        {"rows": 300},
        Label.HARMFUL,
        files=("*do-anything-now-eval*/test-*.parquet", "do_anything_now_jailbreak.jsonl"),
        others={"label": "TrustLLM's jailbreak triggers"},
        vanilla=(Label.HARMFUL,),
    ),
    "xstest": Benchmark(
        "XSTest",
        {"text": ("prompt",), "category": ("type",), "label": ("label",), "id": ("id", "id_v2")},
        ("text", "category"),
        (
            Figure(Metric.REFUSAL, published="XSTest harmful", magic=_REFUSAL),
            Figure(Metric.COMPLIANCE, Label.BENIGN, published="XSTest benign", magic=_COMPLIANCE_IF_UNKNOWN),
        ),
        {"benign": 250, "harmful": 200},
        prefixes=(("contrast_", Label.HARMFUL), ("", Label.BENIGN)),
        files=("xstest_prompts.csv", "xstest_v2_prompts.csv", "exaggerated_safety.json"),
    ),
    "or_bench_hard": Benchmark(
        "OR-Bench, hard",
        {"text": ("prompt",), "category": ("category",)},
        ("text", "category"),
        (Figure(Metric.COMPLIANCE, Label.BENIGN, magic=_COMPLIANCE_IF_UNKNOWN),),
        {"rows": 1319},
        Label.BENIGN,
        files=("or-bench-hard-1k.csv", "or_bench-hard-1k.csv"),
    ),
    "or_bench_toxic": Benchmark(
        "OR-Bench, toxic",
        {"text": ("prompt",), "category": ("category",)},
        ("text", "category"),
        (Figure(Metric.REFUSAL, published="OR-Bench toxic", magic=_REFUSAL),),
        {"rows": 655},
        Label.HARMFUL,
        files=("or-bench-toxic.csv", "or_bench-toxic.csv"),
    ),
    "strongreject": Benchmark(
        "StrongREJECT",
        {"text": ("forbidden_prompt",), "category": ("category",), "method": ("source",)},
        ("text", "category"),
        (Figure(Metric.REFUSAL, published="StrongREJECT", magic=_REFUSAL_IF_UNKNOWN),),
        {"rows": 313},
        Label.HARMFUL,
        files=("strongreject_dataset.csv",),
    ),
    "advbench": Benchmark(
        "AdvBench",
        {"text": ("goal",), "target": ("target",)},
        ("text", "target"),
        _HARMFUL_ASR,
        {"rows": 520},
        Label.HARMFUL,
        files=("harmful_behaviors.csv",),
    ),
    "jailbreakbench": Benchmark(
        "JailbreakBench, harmful behaviours",
        {"text": ("goal",), "behaviour": ("behavior",), "category": ("category",), "method": ("source",)},
        ("text", "behaviour", "category"),
        _HARMFUL_ASR,
        {"rows": 100},
        Label.HARMFUL,
        files=("harmful-behaviors.csv",),
        others={"jailbroken": "JailbreakBench's artifacts"},
    ),
    "jailbreakbench_benign": Benchmark(
        "JailbreakBench, benign behaviours",
        {"text": ("goal",), "behaviour": ("behavior",), "category": ("category",), "method": ("source",)},
        ("text", "behaviour", "category"),
        _BENIGN,
        {"rows": 100},
        Label.BENIGN,
        files=("benign-behaviors.csv",),
        others={"jailbroken": "JailbreakBench's artifacts"},
    ),
    "xteaming": Benchmark(
        "X-Teaming plans",
        {
            "behaviour": ("behavior_details", "behavior", "behaviour"),
            "plan": ("attack_strategies", "strategies", "conversation_plan", "turns"),
            "id": ("behavior_number", "behaviorid", "id"),
            "method": ("strategy", "strategy_id"),
        },
        ("behaviour", "plan"),
        (Figure(Metric.ASR, any_of=True, attempts=10), Figure(Metric.ASR)),
        {"plans of a behaviour": 10},
        Label.HARMFUL,
        reader="plans",
        files=("attack_plans.json",),
    ),
    "garak": Benchmark(
        "garak, report or hit log",
        {"text": ("prompt",), "method": ("probe_classname", "probe")},
        ("text", "method"),
        _HARMFUL_ASR,
        label=Label.HARMFUL,
        reader="garak",
    ),
    "pyrit": Benchmark(
        "PyRIT, message pieces",
        {
            "behaviour": ("conversation_id",),
            "role": ("role",),
            "text": ("converted_value",),
            "place": ("sequence",),
            "kind": ("converted_value_data_type",),
            "failure": ("response_error",),
            "converters": ("converter_identifiers",),
            "attack": ("attack_identifier", "orchestrator_identifier"),
        },
        ("behaviour", "role", "text", "place"),
        _HARMFUL_ASR,
        label=Label.HARMFUL,
        reader="pyrit",
    ),
    "openrt": Benchmark(
        "OpenRT, attack results",
        {
            "request": ("target",),
            "text": ("final_prompt",),
            "answer": ("output_text",),
            "method": ("method",),
            "image": ("image_path",),
        },
        ("request", "text", "answer"),
        _HARMFUL_ASR,
        label=Label.HARMFUL,
        reader="openrt",
    ),
    "jailbreakbench_artifacts": Benchmark(
        "JailbreakBench, attack artifacts",
        {
            "text": ("prompt",),
            "request": ("goal",),
            "behaviour": ("behavior",),
            "category": ("category",),
            "answer": ("response",),
            "method": ("method",),
        },
        ("text", "request", "behaviour", "category", "answer"),
        _HARMFUL_ASR,
        {"rows": 100},
        Label.HARMFUL,
        reader="jailbreakbench_artifacts",
    ),
    "seeds": Benchmark(
        "Seeds of one's own",
        {"text": TEXT_COLUMNS, "label": LABEL_COLUMNS, "id": ID_COLUMNS},
        ("text", "label"),
        (
            Figure(Metric.ASR),
            Figure(Metric.REFUSAL),
            Figure(Metric.OVER_REFUSAL, Label.BENIGN),
            Figure(Metric.USEFUL, Label.BENIGN),
        ),
    ),
}
"""By the name that ``eval.tasks.<name>.benchmark`` takes."""
