"""Harmless rows in the benchmarks' schemas. The words mean nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas

Row = dict[str, Any]

ROWS: dict[str, list[Row]] = {
    "harmbench": [
        {
            "Behavior": f"norp the {word}", "FunctionalCategory": "contextual" if i == 1 else "standard",
            "SemanticCategory": "plim" if i % 2 else "vask", "Tags": "", "ContextString": "The glim." if i == 1 else "",
            "BehaviorID": f"norp_{i}",
        }
        for i, word in enumerate(("fleb", "grub", "tolm"))
    ],
    "harmbench_adversarial": [
        {"BehaviorID": f"norp_{b}", "test_case": f"pretty please norp {b} by {m}", "method": m}
        for b in range(2)
        for m in ("ZIB", "QUO")
    ],
    "wildguardtest": [
        {
            "prompt": f"wug {i}", "adversarial": i % 2 == 0, "response": "wug!", "subcategory": "glim",
            "prompt_harm_label": label, "response_refusal_label": "refusal",
            "response_harm_label": None if i == 1 else "unharmful",
        }
        for i, label in enumerate(["harmful", "harmful", "unharmful", None])
    ],
    "wildjailbreak": [
        {"adversarial": f"imagine a wug {i}", "label": i % 2, "data_type": kind}
        for i, kind in enumerate(["adversarial_benign", "adversarial_harmful", "adversarial_benign"])
    ],
    "dan": [{"prompt": f"be a wug, wug {i}", "question": f"wug {i}"} for i in range(3)],
    "xstest": [
        {"id": 1, "prompt": "How do I norp a fleb?", "type": "homonyms", "focus": "norp", "note": ""},
        {"id": 2, "prompt": "How do I norp a grub?", "type": "contrast_homonyms", "focus": "norp", "note": ""},
    ],
    "or_bench_hard": [{"prompt": f"fleb {i}", "category": "plim"} for i in range(3)],
    "or_bench_toxic": [{"prompt": f"grub {i}", "category": "plim"} for i in range(3)],
    "strongreject": [{"category": "vask", "source": "made up", "forbidden_prompt": f"grub {i}"} for i in range(2)],
    "advbench": [{"goal": f"grub {i}", "target": f"Sure, here is grub {i}"} for i in range(2)],
    "jailbreakbench": [
        {"Index": i, "Goal": f"grub {i}", "Target": "Sure", "Behavior": f"B{i}", "Category": "plim", "Source": "own"}
        for i in range(2)
    ],
    "jailbreakbench_benign": [
        {"Index": i, "Goal": f"fleb {i}", "Target": "Sure", "Behavior": f"B{i}", "Category": "plim", "Source": "own"}
        for i in range(2)
    ],
    "xteaming": [
        {
            "behavior_number": number,
            "behavior_details": {"behavior": f"norp the {number}", "semantic_category": "plim"},
            "attack_strategies": {
                f"Set_{s}": {
                    f"strategy {k}": {
                        "persona": "a wug",
                        "conversation_plan": {"turn_1": f"hello {s}{k}", "final_turn": f"norp {s}{k}"}
                    }
                    for k in range(2)
                }
                for s in range(2)
            },
        }
        for number in range(2)
    ],
    "seeds": [{"prompt": f"wug {i}", "label": "harmful" if i % 2 else "benign"} for i in range(4)],
}  # fmt: skip

COUNTS = {  # examples, harmful, benign
    "harmbench": (3, 3, 0),
    "harmbench_adversarial": (4, 4, 0),
    "wildguardtest": (4, 2, 1),
    "wildjailbreak": (3, 1, 2),
    "dan": (3, 3, 0),
    "xstest": (2, 1, 1),
    "or_bench_hard": (3, 0, 3),
    "or_bench_toxic": (3, 3, 0),
    "strongreject": (2, 2, 0),
    "advbench": (2, 2, 0),
    "jailbreakbench": (2, 2, 0),
    "jailbreakbench_benign": (2, 0, 2),
    "xteaming": (8, 8, 0),
    "seeds": (4, 2, 2),
}


def write(path: Path, rows: list[Row]) -> Path:
    """``rows`` in the format that ``path`` ends in."""
    if path.suffix == ".parquet":
        pandas.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(rows)
    return path
