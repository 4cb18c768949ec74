"""A workload on a peer, run by a Python of its own: `python peer.py KIND WORKLOAD_JSON THREADS`. Needs no minirlhf.

KIND is trl-ppo (TRL 1.12.0, the last one with PPO), trl-grpo, trl-rloo (the newest), or hf (transformers' generate). It
says `ready`, then does one iteration for every line on its standard input and answers with one JSON object: seconds of
the whole and, where the peer has such a stage, of the rollout; tokens generated; peak memory of the process.

Configured fairly: float32, no gradient checkpointing, no limits on sampling, as many optimiser steps as minirlhf takes,
one reference forward, all responses generated in one batch.
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
LR, COMMON = 1e-7, 8.0


def say(value) -> None:
    """One JSON value to whoever started this."""
    ANSWERS.write(json.dumps(value) + "\n")
    ANSWERS.flush()


def wait() -> None:
    """Until the next iteration is wanted; the end of the input ends the process."""
    if not sys.stdin.readline():
        os._exit(0)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def model_of(work, kind="causal"):
    """The same sizes, and embeddings that share a direction, so that the EOS has the workload's chance."""
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
        weight[PAD, 0] -= 20 / work["width"] ** 0.5  # nothing is sampled that is no token of a text
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
    """A word for every id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<bos>", "<eos>", *(f"t{i}" for i in range(3, work["vocab"]))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def peer_prompts(work, count):
    """Random ids of random lengths."""
    g = torch.Generator().manual_seed(1)
    lengths = torch.randint(work["prompt_min"], work["prompt_max"] + 1, (count,), generator=g).tolist()
    lengths[0] = work["prompt_max"]
    return [torch.randint(3, work["vocab"], (n,), generator=g).tolist() for n in lengths]


class GenerateClock:
    """Seconds of generate within an iteration, by wrapping the model's own."""

    def __init__(self, model) -> None:
        self.rollout, self.tokens, inner = 0.0, 0, model.generate

        def generate(*args, **kwargs):
            started = perf_counter()
            out = inner(*args, **kwargs)
            self.rollout += perf_counter() - started
            return out

        model.generate = generate


def answer(clock, started) -> None:
    """What an iteration took."""
    say({"whole": perf_counter() - started, "rollout": clock.rollout, "peak_mb": peak_mb()})
    clock.rollout = 0.0


def callback_of(clock, steps):
    """Answers after every `steps` steps of a trainer and waits for the next line."""
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
    """TRL's PPO: policy, reference, a second full model for the values, a rule as reward model."""
    from datasets import Dataset
    from torch import nn
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    class Rule(nn.Module):
        """A reward model that takes no time: the share of even ids."""

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
    """TRL's GRPO or RLOO: groups of eight, the same number of optimiser steps on the same number of responses."""
    import trl
    from datasets import Dataset

    model, count, tokenizer = model_of(work), work["responses"], peer_tokenizer(work)
    place = os.path.join(folder, "model")  # the reference is read from where the model says that it is from
    model.save_pretrained(place)
    model.config._name_or_path = place
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
    """transformers' generate alone."""
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
    """Do what the arguments say until the input ends."""
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
    ANSWERS = os.fdopen(os.dup(1), "w")  # whatever the peer prints goes to stderr, only answers to stdout
    os.dup2(2, 1)
    main()
