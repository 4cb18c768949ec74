"""Events of `run`, `pretrain`, `sft` and `reward-model`, as a JSON Schema of a line of --json.

    EVENTS           name -> schema of that event
    events_schema()  any of them, told apart by `event`

Not here: who emits an event; each is built as a dict where it happens, and the tests hold every event of their runs
against these schemas.
"""

from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
MAYBE: Schema = {"type": ["number", "null"]}  # null: nobody could say (NaN in a file of metrics)
INTERVAL: Schema = {"type": ["array", "null"], "items": NUMBER}  # low, high; null: fewer than two numbers
FLAG: Schema = {"type": "boolean"}
ANYTHING: Schema = {"type": "object"}  # what a config or a key holds


def several(items: Schema) -> Schema:
    """Schema of a list."""
    return {"type": "array", "items": items}


def fields(about: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Schema of an object with these fields and no other."""
    properties = {**required, **(optional or {})}
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return {"description": about, **schema}


def event(name: str, about: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Schema of an object whose `event` is this name, with these fields."""
    return fields(about, {"event": {"const": name}, **required}, optional)


def stage(name: str, about: str, required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """Schema of the event `stage` with this `stage`."""
    return event("stage", about, {"stage": {"const": name}, **required}, optional)


RIGHT = {"pairs": WHOLE, "right": NUMBER}
REPORT = fields(
    "A reward model on comparisons that it did not learn from; null: all of them are ties.",
    {
        **{"pairs": WHOLE, "ties": WHOLE, "accuracy": MAYBE, "accuracy_ci95": INTERVAL, "loss": NUMBER, "ece": NUMBER},
        **{"margin_mean": NUMBER, "length_correlation": NUMBER, "longer_wins": MAYBE, "decided_when_to_stop": FLAG},
        "reliability": several(fields("What it stated, and how often it was right.", {**RIGHT, "stated": NUMBER})),
    },
    {
        "ece_floor": NUMBER,  # not in the report of a reward model that an earlier version trained
        **{"ceiling": MAYBE, "of_ceiling": MAYBE, "members": several(MAYBE)},
        "by_gap": several(fields("By how much better a side really is.", {**RIGHT, "from": NUMBER})),
    },
)
SIDE = fields(
    "Reference or policy on the held-out prompts.",
    {
        **{"score_mean": MAYBE, "score_std": MAYBE, "score_p90": MAYBE, "length_mean": NUMBER, "eos_rate": NUMBER},
        **{"distinct_2": MAYBE, "distinct_share": NUMBER},
    },
    {
        **{"residual_std": MAYBE, "residual_std_on_reference": MAYBE, "true_score_mean": NUMBER},
        "true_score_parts": {"type": "object", "additionalProperties": NUMBER},
    },
)
COMPLETED = fields(
    "A prompt with both completions.",
    {"prompt": TEXT, "reference": TEXT, "policy": TEXT, "reference_score": MAYBE, "policy_score": MAYBE},
)
BEST_OF = fields(
    "What the best of n responses of the reference scores.",
    {"n": WHOLE, "kl": NUMBER, "score": NUMBER, "score_se": MAYBE},
)
LEAD = {"n": WHOLE, "kl": NUMBER, "score": NUMBER, "objective": NUMBER, "policy_lead": NUMBER}
OBJECTIVE = fields(
    "J = score - beta KL on the same prompts.",
    {
        **{"beta": NUMBER, "prompts": WHOLE, "reference": NUMBER, "policy": NUMBER, "policy_kl": NUMBER},
        "best_of_n": several(fields("Best of n of the reference.", {**LEAD, "policy_lead_ci95": INTERVAL})),
        "best_known": fields("The highest J known.", {"what": TEXT, "objective": NUMBER}),
        **{"share_at_most": MAYBE, "not_beaten": several(WHOLE)},
    },
    {
        **{"policy_gain": NUMBER, "policy_gain_ci95": INTERVAL, "prompts_left_out": WHOLE},
        "score_rules": several(TEXT),
        "verdict": fields("The policy and what else has the highest J.", {"against": TEXT, "outcome": TEXT}),
    },
)
EXACT = fields(
    "How far the policy is from the optimum of the problem's score - beta KL; changed: why the run's was another.",
    {
        **{"optimality": MAYBE, "objective": NUMBER, "best": NUMBER, "reward": NUMBER, "kl": NUMBER, "beta": NUMBER},
        "changed": several(TEXT),
    },
)
TUNED = {
    **{"demonstrations": WHOLE, "heldout": WHOLE, "steps": WHOLE, "heldout_loss_before": NUMBER},
    **{"heldout_loss": NUMBER, "tokens": WHOLE, "parameters": WHOLE, "seconds": NUMBER},
}
TRAINED = {
    **{"report": REPORT, "train_pairs": WHOLE, "watched_pairs": WHOLE, "settings": ANYTHING, "seconds": NUMBER},
    "best_step": {"type": ["integer", "array"], "items": WHOLE},
}
SIZES = {"pairs": WHOLE, "watched": WHOLE, "heldout": WHOLE, "ensemble": WHOLE}
FOUND = {"reused": {"const": True}, "directory": TEXT}
MADE = {"reused": {"const": False}}
FITTED = {"kl": NUMBER, "steps": NUMBER}  # a base of the exact lab
PRETRAINED = {"heldout_loss": NUMBER, "tokens": WHOLE, "tokens_per_s": NUMBER}
OWN = {"model": TEXT, "family": TEXT, "dtype": TEXT, "sha256": TEXT}
BASE = {"reused": FLAG, "directory": TEXT, "parameters": WHOLE, "seconds": NUMBER}
STAGES = [
    stage("pretrain", "A base is going to be made.", {"documents": WHOLE, "steps": WHOLE}),
    stage("base", "The base, made or found.", {**BASE, **PRETRAINED}, {"key": ANYTHING}),
    stage("base", "The base of a problem of the exact lab.", {**BASE, **FITTED}, {"key": ANYTHING}),
    stage("base", "A model of the user's own.", {**BASE, **OWN}),
    stage("sft", "Fine-tuning begins.", {**MADE, "demonstrations": WHOLE, "heldout": WHOLE, "steps": WHOLE}),
    stage("sft", "What fine-tuning had made is found.", {**FOUND, **TUNED, "key": ANYTHING}),
    stage("reward_model", "The training of a reward model begins.", {**MADE, **SIZES}),
    stage("reward_model", "A reward model is found.", {**FOUND, **TRAINED}),
    stage(
        "ppo",
        "PPO begins.",
        {
            **{"iterations": WHOLE, "responses": WHOLE, "parameters": WHOLE, "reference_sha256": TEXT},
            **{"kl_target": MAYBE, "notes": several(TEXT)},
        },
    ),
    stage("evaluation", "The evaluation of reference and policy begins.", {"prompts": WHOLE}),
]
VERSIONS = {"preset": TEXT, "device": TEXT, "threads": WHOLE, "minirlhf": TEXT, "torch": TEXT, "python": TEXT}
EVENTS: dict[str, Schema] = {
    "run_started": event("run_started", "The first event of a run.", {"run_dir": TEXT, "seed": WHOLE, **VERSIONS}),
    "resumed": event(
        "resumed",
        "A run or a stage goes on behind this step; from: null where a run begins again.",
        {"step": WHOLE, "from": {"type": ["string", "null"]}},
    ),
    "already_finished": event("already_finished", "Nothing is left to do.", {"run_dir": TEXT}),
    "warning": event(
        "warning", "A sentence for the user; owner: the process that is waited for.", {"message": TEXT}, {"owner": TEXT}
    ),
    "stage": {"oneOf": STAGES},
    "pretrain": event(
        "pretrain",
        "Twenty times on the way. Unit of the loss: nats a token.",
        {"step": WHOLE, "steps": WHOLE, "loss": NUMBER, "lr": NUMBER, "tokens": WHOLE, "tokens_per_s": NUMBER},
    ),
    "sft": event("sft", "A step of fine-tuning.", {"step": WHOLE, "steps": WHOLE, "loss": NUMBER}),
    "sft_finished": event("sft_finished", "The last event of fine-tuning.", {"directory": TEXT, **TUNED}),
    "reward_model": event(
        "reward_model",
        "A step of a reward model; steps: at most; accuracy: null if all comparisons of the step are ties.",
        {"member": WHOLE, "step": WHOLE, "steps": WHOLE, "loss": NUMBER, "accuracy": MAYBE},
        {"heldout_accuracy": NUMBER},
    ),
    "reward_model_finished": event(
        "reward_model_finished", "The last event of a reward model.", {"directory": TEXT, **TRAINED}
    ),
    "reward_scale": event(
        "reward_scale", "What a reward is normalised by.", {"label": TEXT, "mean": NUMBER, "std": NUMBER}
    ),
    "step": {
        **event("step", "An iteration of PPO, with its metrics.", {"step": WHOLE, "iterations": WHOLE}),
        "additionalProperties": MAYBE,
    },
    "sample": event(
        "sample",
        "A response of a logged iteration: the text and the advantage of each of its tokens.",
        {"step": WHOLE, "prompt": TEXT, "tokens": several(TEXT), "advantages": several(MAYBE), "score": MAYBE},
    ),
    "checkpoint": event("checkpoint", "The whole state is saved.", {"step": WHOLE, "path": TEXT}),
    "run_finished": event(
        "run_finished",
        "The last event of a run: what evaluation.json holds, and some prompts with both completions.",
        {
            **{"run_dir": TEXT, "report": TEXT, "prompts": WHOLE, "reference": SIDE, "policy": SIDE},
            **{
                "score_pairs": WHOLE,
                "score_gain": MAYBE,
                "score_gain_ci95": INTERVAL,
                "win_rate": MAYBE,
                "ties": WHOLE,
                "kl_nats_per_sequence": NUMBER,
            },
            **{"kl_coef": NUMBER, "samples": several(COMPLETED)},
            "objective": {"oneOf": [OBJECTIVE, {"type": "null"}]},
            "made_of": {"type": "object"},
            "seconds": {"type": "object", "additionalProperties": NUMBER},
        },
        {
            **{"true_score_gain": NUMBER, "true_score_gain_ci95": INTERVAL},
            **{"true_score_rewarded": several(TEXT), "true_score_seen": TEXT, "objective_unknown": TEXT},
            **{"true_score_gain_unrewarded": NUMBER, "true_score_gain_unrewarded_ci95": INTERVAL},
            **{"optimality": MAYBE, "exact": EXACT, "best_of_n": several(BEST_OF)},
        },
    ),
}


def events_schema() -> Schema:
    """JSON Schema (2020-12) of one line of --json; an unknown event is refused."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "description": "An event, told apart by `event`.",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in EVENTS],
        "$defs": EVENTS,
    }


Emit = Callable[[dict[str, Any]], None]
