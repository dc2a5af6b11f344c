"""Run in the environment of lm-evaluation-harness: one of its models on the task beside this file; prints JSON."""

from __future__ import annotations

import json
import sys

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager


def main(model: str, arguments: str) -> None:
    result = simple_evaluate(
        model=model,
        model_args=json.loads(arguments),
        tasks=["langport_facts"],
        task_manager=TaskManager(include_path=".", include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(result["samples"]["langport_facts"], key=lambda sample: sample["doc_id"])
    print(
        json.dumps(
            {
                "scores": {name: result["results"]["langport_facts"][f"{name},none"] for name in ("acc", "acc_norm")},
                "answers": [[[float(x) for x in pair] for pair in sample["filtered_resps"]] for sample in samples],
            }
        )
    )


main(*sys.argv[1:])
