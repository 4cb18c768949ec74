"""A workload on a peer: `python peer.py KIND WORKLOAD_JSON THREADS`, run by the Python of the peer's environment.

KIND is trl-ppo (TRL 1.12.0, the last one with PPO), trl-grpo or trl-rloo (the newest TRL), or hf (transformers'
generate). It prints "ready", then runs one iteration for every line of stdin and answers with one JSON object: seconds
of the whole and, if the peer has that stage, of the rollout; generated tokens; peak memory of the process in MiB.

Configured fairly: float32, no gradient checkpointing, no sampling cuts, as many optimiser steps as minirlhf takes, one
forward pass of the reference, all responses generated in one batch.

Nothing of minirlhf is imported here: it is not installed in that environment.
"""

import json
import os
import resource
import sys
import tempfile
from time import perf_counter

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch

PAD, BOS, EOS = 0, 1, 2
LR, COMMON = 1e-7, 8.0  # as in ours.py


def say(value) -> None:
    """Answer with one JSON value."""
    ANSWERS.write(json.dumps(value) + "\n")
    ANSWERS.flush()


def wait() -> None:
    """Block until the next line of stdin; the end of stdin ends the process."""
    if not sys.stdin.readline():
        os._exit(0)


def peak_mb() -> float:
    """Peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def model_of(work, kind="causal"):
    """Llama of the workload's sizes; its EOS has the workload's chance by the construction of ours.trunk_of."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=work["vocab"], hidden_size=work["width"], intermediate_size=work["ff"],
        num_hidden_layers=work["layers"], num_attention_heads=work["heads"], num_key_value_heads=work["heads"],
        max_position_embeddings=work["prompt_max"] + work["response"], tie_word_embeddings=True,
        pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS, num_labels=1, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config) if kind == "causal" else LlamaForSequenceClassification(config)
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight.normal_(0, 0.02)
        weight[:, 0] = COMMON
        weight[PAD, 0] -= 20 / work["width"] ** 0.5  # PAD and BOS are never sampled
        weight[BOS, 0] -= 20 / work["width"] ** 0.5
        if work["eos"]:
            odds = work["eos"] / (1 - work["eos"]) * (work["vocab"] - 3)
            weight[EOS, 0] += float(torch.tensor(odds).log()) / work["width"] ** 0.5
        else:
            weight[EOS, 0] -= 20 / work["width"] ** 0.5
    if kind == "causal":
        model.generation_config.eos_token_id = EOS if work["eos"] else None
        model.generation_config.pad_token_id = PAD
    return model.float()


def peer_tokenizer(work):
    """Tokenizer with one word for every id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<bos>", "<eos>", *(f"t{i}" for i in range(3, work["vocab"]))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def peer_prompts(work, count):
    """Random prompts of random lengths, as lists of ids."""
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(work["prompt_min"], work["prompt_max"] + 1, (count,), generator=g).tolist()
    lengths[0] = work["prompt_max"]
    return [torch.randint(3, work["vocab"], (n,), generator=g).tolist() for n in lengths]


class GenerateClock:
    """Sums the seconds of model.generate within an iteration, by wrapping it."""

    def __init__(self, model) -> None:
        self.rollout, self.tokens, inner = 0.0, 0, model.generate

        def generate(*args, **kwargs):
            started = perf_counter()
            out = inner(*args, **kwargs)
            self.rollout += perf_counter() - started
            return out

        model.generate = generate


def answer(clock, started) -> None:
    """Report the seconds of an iteration, and reset the clock."""
    say({"whole": perf_counter() - started, "rollout": clock.rollout, "peak_mb": peak_mb()})
    clock.rollout = 0.0


def callback_of(clock, steps):
    """Trainer callback that answers after every `steps` steps and waits for the next line."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        started = 0.0
        done = 0

        def on_train_begin(self, *args, **kwargs):
            say("ready")
            wait()
            clock.rollout, self.started = 0.0, perf_counter()

        def on_step_end(self, *args, **kwargs):
            self.done += 1
            if self.done % steps == 0:
                answer(clock, self.started)
                wait()
                self.started = perf_counter()

    return Turns()


def trl_ppo(work, folder) -> None:
    """Train with TRL's PPO: policy, reference, a second full model for the values, a rule as reward model."""
    from datasets import Dataset
    from torch import nn
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Rule(nn.Module):
        """Reward model that takes no time: the share of even ids."""

        base_model_prefix = "backbone"

        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))
            self.backbone = lambda input_ids, **_: type("Out", (), {"hidden_states": [input_ids]})()

        def score(self, ids):
            return (ids % 2 == 0).float().cumsum(1).unsqueeze(-1) / ids.shape[1]

    model, count = model_of(work), work["responses"]
    clock = GenerateClock(model)
    args = PPOConfig(
        output_dir=folder, learning_rate=LR, lr_scheduler_type="constant", per_device_train_batch_size=count,
        gradient_accumulation_steps=1, num_mini_batches=count // work["minibatch"], num_ppo_epochs=work["epochs"],
        total_episodes=count * 100_000, response_length=work["response"], temperature=1.0, kl_coef=0.05,
        local_rollout_forward_batch_size=count, num_sample_generations=0, bf16=False, fp16=False,
        gradient_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
        logging_strategy="no", stop_token="eos" if work["eos"] else None,
    )  # fmt: skip
    trainer = PPOTrainer(
        args=args, processing_class=peer_tokenizer(work), model=model, ref_model=model_of(work), reward_model=Rule(),
        value_model=model_of(work, "value"), train_dataset=Dataset.from_dict({"input_ids": peer_prompts(work, count)}),
        eval_dataset=Dataset.from_dict({"input_ids": peer_prompts(work, count)}),
        callbacks=[callback_of(clock, 1)],
    )  # fmt: skip
    trainer.train()


def trl_groups(work, folder, kind) -> None:
    """Train with TRL's GRPO or RLOO: groups of 8, as many responses and optimiser steps as minirlhf."""
    import trl
    from datasets import Dataset

    model, count, tokenizer = model_of(work), work["responses"], peer_tokenizer(work)
    saved = os.path.join(folder, "model")  # the trainer loads its reference from the model's _name_or_path
    model.save_pretrained(saved)
    model.config._name_or_path = saved
    clock = GenerateClock(model)
    steps = work["epochs"] * count // work["minibatch"]
    common = {
        "output_dir": folder, "learning_rate": LR, "lr_scheduler_type": "constant", "report_to": [],
        "per_device_train_batch_size": work["minibatch"], "steps_per_generation": count // work["minibatch"],
        "num_iterations": work["epochs"], "num_generations": 8, "max_completion_length": work["response"], "beta": 0.05,
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "bf16": False, "fp16": False, "gradient_checkpointing": False,
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "logging_strategy": "no", "max_steps": 1_000_000,
    }  # fmt: skip
    config, trainer = (trl.GRPOConfig, trl.GRPOTrainer) if kind == "grpo" else (trl.RLOOConfig, trl.RLOOTrainer)

    def even(completion_ids, **_):
        return [sum(i % 2 == 0 for i in ids) / max(1, len(ids)) for ids in completion_ids]

    texts = [tokenizer.decode(ids) for ids in peer_prompts(work, count)]
    trainer(
        model=model, reward_funcs=even, args=config(**common), train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer, callbacks=[callback_of(clock, steps)],
    ).train()  # fmt: skip


def hf(work) -> None:
    """Generate with transformers, without training."""
    model = model_of(work).eval()
    rows = peer_prompts(work, work["responses"])
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = ids != PAD
    say("ready")
    while True:
        wait()
        started = perf_counter()
        with torch.no_grad():
            out = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, max_new_tokens=work["response"], top_k=0, top_p=1.0,
                temperature=1.0,
            )  # fmt: skip
        seconds = perf_counter() - started
        say({"whole": seconds, "tokens": int((out[:, width:] != PAD).sum()), "peak_mb": peak_mb()})


def main() -> None:
    """Run one turn for each line of stdin, as the arguments say, until it ends."""
    kind, work = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(int(sys.argv[3]))
    with tempfile.TemporaryDirectory() as folder:
        if kind == "hf":
            hf(work)
        elif kind == "trl-ppo":
            trl_ppo(work, folder)
        else:
            trl_groups(work, folder, kind.removeprefix("trl-"))


if __name__ == "__main__":
    ANSWERS = os.fdopen(os.dup(1), "w")  # stdout is for answers alone: prints of the peer go to stderr
    os.dup2(2, 1)
    main()
