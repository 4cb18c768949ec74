"""Seconds of an iteration on SmolLM2-135M with adapters, ours and TRL's; and of decoding, ours and Hugging Face's.

    python tests/benchmarks/real_models.py MODEL --peer PYTHON [--turns 5] [--dtype float32|bfloat16] [--what ...]

MODEL: a directory of weights, such as runs/bases/smollm2-HASH. PYTHON: the interpreter of an environment with trl,
peft and transformers. An iteration has 16 responses of 24 tokens to 16 openings of reviews, learned from twice in parts
of 8: sampling, scoring by policy and reference, two epochs. Ours is the command `minirlhf run smollm2` (PPO with a
value head); TRL's is GRPOTrainer with adapters of the same rank on the same projections and a KL to the base, or, with
--what ppo and TRL 1.12, PPOTrainer with such adapters and a second model, which learns the values with all its weights.
A turn is a process of its own, and a turn of one is followed by one of the other, so that ratios hold when the machine
drifts.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RESPONSES, TOKENS, RANK = 16, 24, 8
PPO = ("ppo.iterations=4", f"ppo.prompts_per_iteration={RESPONSES}", "ppo.minibatch_size=8", "ppo.epochs=2")
LEAST = ("evaluation.prompts=1", "evaluation.residual_prompts=0", "evaluation.bootstrap=100", "run.token_log=0")

GRPO = """
import sys, time, json, resource, torch
torch.set_num_threads(2)
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
model, dtype, out, prompts = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
policy = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
tokenizer = AutoTokenizer.from_pretrained(model)
marks = []
class Watch(TrainerCallback):
    def on_step_end(self, *a, **k):
        marks.append(time.perf_counter())
config = GRPOConfig(
    output_dir=out, per_device_train_batch_size=8, gradient_accumulation_steps=2, num_generations=4, num_iterations=2,
    max_completion_length=24, beta=0.05, learning_rate=1e-3, max_steps=8, logging_steps=100, save_strategy="no",
    report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False, temperature=1.0,
    generation_kwargs={"min_new_tokens": 24}, disable_tqdm=True, dataloader_num_workers=0,
)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
trainer = GRPOTrainer(
    model=policy, args=config, processing_class=tokenizer,
    train_dataset=Dataset.from_list([{"prompt": p} for p in prompts]),
    reward_funcs=lambda completions, **k: [float(len(c)) for c in completions],
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"), callbacks=[Watch()],
)
trainer.train()
# Two optimiser steps an iteration; the first iteration warms up.
whole = [marks[i + 2] - marks[i] for i in range(1, len(marks) - 2, 2)]
print(json.dumps({"seconds": whole, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}))
"""

PPO_THERE = """
import sys, time, json, resource, torch
torch.set_num_threads(2)
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer
model, dtype, out, prompts = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
policy = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
value = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=dtype)
class Rule(torch.nn.Module):  # a reward that takes no time
    base_model_prefix = "backbone"
    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.backbone = lambda input_ids, **_: type("Out", (), {"hidden_states": [input_ids]})()
    def score(self, ids):
        return (ids % 2 == 0).float().cumsum(1).unsqueeze(-1) / ids.shape[1]
marks = []
class Watch(TrainerCallback):
    def on_train_begin(self, *a, **k):
        marks.append(time.perf_counter())
    def on_step_end(self, *a, **k):
        marks.append(time.perf_counter())
rows = [tokenizer(p)["input_ids"] for p in prompts]
config = PPOConfig(
    output_dir=out, per_device_train_batch_size=16, gradient_accumulation_steps=1, num_mini_batches=2, num_ppo_epochs=2,
    total_episodes=64, response_length=24, temperature=1.0, kl_coef=0.03, learning_rate=1e-3,
    local_rollout_forward_batch_size=16, num_sample_generations=0, bf16=False, gradient_checkpointing=False,
    report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, logging_strategy="no",
)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
trainer = PPOTrainer(
    args=config, processing_class=tokenizer, model=policy, ref_model=None, reward_model=Rule(), value_model=value,
    train_dataset=Dataset.from_dict({"input_ids": rows}), eval_dataset=Dataset.from_dict({"input_ids": rows}),
    peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"), callbacks=[Watch()],
)
trainer.train()
whole = [after - before for before, after in zip(marks, marks[1:])][1:]
print(json.dumps({"seconds": whole, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}))
"""

GENERATE = """
import sys, time, json, torch
torch.set_num_threads(2)
from transformers import AutoModelForCausalLM
model, dtype = sys.argv[1], sys.argv[2]
policy = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
ids = torch.randint(100, 40000, (16, 10), generator=torch.Generator().manual_seed(0))
how = dict(max_new_tokens=24, min_new_tokens=24, do_sample=True, temperature=1.0, top_k=0, pad_token_id=2)
seconds = []
for turn in range(4):
    started = time.perf_counter()
    with torch.no_grad():
        policy.generate(ids, attention_mask=torch.ones_like(ids), **how)
    seconds.append(time.perf_counter() - started)
print(json.dumps({"seconds": seconds[1:]}))
"""

DECODE = """
import sys, time, json, torch
torch.set_num_threads(2)
from pathlib import Path
from minirlhf.models.generate import PromptBatch, generate
from minirlhf.models.lora import Adapted, Adapter, PARTS
from minirlhf.models.policy import Policy
from minirlhf.models.sampler import Sampler
from minirlhf.store.adapters import load_backbone
from minirlhf.text.foreign import load_tokenizer
model, dtype = sys.argv[1], sys.argv[2]
backbone, tokenizer = load_backbone(Path(model), dtype, torch.device("cpu")), load_tokenizer(model)
trunk = backbone
if sys.argv[3] == "adapted":
    adapter = Adapter(backbone.config, 8, 16.0, tuple(PARTS))
    trunk = Adapted(backbone, adapter.initialise(torch.Generator().manual_seed(0)))
policy = Policy(trunk, Sampler(1.0, banned=(2,), stops=(2,)))
ids = torch.randint(100, 40000, (16, 10), generator=torch.Generator().manual_seed(0))
prompts = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(16), ("",) * 16, {})
seconds = []
for turn in range(4):
    started = time.perf_counter()
    generate(policy, prompts, tokenizer, max_new_tokens=24, generator=torch.Generator().manual_seed(turn))
    seconds.append(time.perf_counter() - started)
print(json.dumps({"seconds": seconds[1:]}))
"""


def ours(model: str, dtype: str, *more: str) -> dict[str, object]:
    """Seconds of the iterations after the first, of a run by the command."""
    with tempfile.TemporaryDirectory() as folder:
        sets = [*PPO, *LEAST, f"model.dtype={dtype}", *more]
        command = [sys.executable, "-m", "minirlhf", "run", "smollm2", "--model", model, "--out", f"{folder}/run"]
        subprocess.run([*command, *(p for s in sets for p in ("--set", s))], check=True, capture_output=True)
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    parts = ("time/rollout", "time/score", "time/learn")
    return {"seconds": [sum(row[part] for part in parts) for row in rows[1:]]}


def script(python: str, code: str, *arguments: str) -> dict[str, object]:
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--peer", default=sys.executable)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--what", default="iteration", choices=["iteration", "ppo", "decoding", "full"])
    chosen = parser.parse_args()
    prompts = json.dumps([f"This {thing} arrived" for thing in ("jacket", "kettle", "lamp", "phone")] * 4)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(chosen.turns):
            if chosen.what == "iteration":
                pairs = {
                    "ours": lambda: ours(chosen.model, chosen.dtype),
                    "trl": lambda: script(chosen.peer, GRPO, chosen.model, chosen.dtype, folder, prompts),
                }
            elif chosen.what == "ppo":
                pairs = {
                    "ours": lambda: ours(chosen.model, chosen.dtype),
                    "trl": lambda: script(chosen.peer, PPO_THERE, chosen.model, chosen.dtype, folder, prompts),
                }
            elif chosen.what == "full":
                pairs = {
                    "ours": lambda: ours(chosen.model, "float32"),
                    "full": lambda: ours(chosen.model, "float32", "lora.rank=0"),
                }
            else:
                pairs = {
                    "ours": lambda: script(sys.executable, DECODE, chosen.model, chosen.dtype, "plain"),
                    "adapted": lambda: script(sys.executable, DECODE, chosen.model, chosen.dtype, "adapted"),
                    "hf": lambda: script(chosen.peer, GENERATE, chosen.model, chosen.dtype),
                }
            for name, measure in pairs.items():
                seconds = measure()["seconds"]
                assert isinstance(seconds, list)
                found.setdefault(name, []).append(statistics.median(seconds))
                print(name, round(found[name][-1], 3), flush=True)
    middle = {name: statistics.median(values) for name, values in found.items()}
    for name, value in middle.items():
        print(f"{name:<8} {value:.3f} s (median of {chosen.turns}), ours over it {middle['ours'] / value:.2f}")


if __name__ == "__main__":
    main()
