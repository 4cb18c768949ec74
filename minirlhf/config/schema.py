"""The configuration of a run as frozen, strict pydantic models; the defaults are the preset `reviews`.

The sections kl, advantage, loss and rewards.LABEL choose a component: their own keys are fixed, every other key is an
option of that component. Not here: files, flags and presets (layers.py, toml.py), and checks across fields (faults.py).
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # projections of a block
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


FLOAT32 = (2.0**-149, (2 - 2.0**-23) * 2.0**127)  # smallest and largest positive number: 1.4e-45, 3.4e38


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _held_by_float32(cls, value: Any) -> Any:
        """Refuse a number that would become infinite, or 0, in float32, in which everything is computed."""
        if isinstance(value, float) and value and not FLOAT32[0] <= abs(value) <= FLOAT32[1]:
            reason = "float32, in which it is used, holds 0 and sizes from 1.4e-45 to 3.4e38"
            raise PydanticCustomError("float32", reason)
        return value


class RunConfig(Section):
    preset: str = Field("reviews", pattern=LABEL.pattern.join("^$"), description="name in the run directory's name")
    seed: int = Field(0, ge=0, description="decides prompts' order, sampling, minibatches and evaluation")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps")
    threads: int = Field(2, ge=1, le=1024, description="CPU threads; sums depend on it, so it is part of the config")
    bases: str = Field("runs/bases", min_length=1, description="where pretrained bases are kept and found again")
    observers: tuple[str, ...] = Field((), description="observers that watch the run")
    log_every: int = Field(1, ge=1, description="iterations between two entries of samples.jsonl and tokens.jsonl")
    samples: int = Field(4, ge=0, description="responses of an iteration that samples.jsonl keeps")
    token_log: int = Field(
        4, ge=0, le=64, description="responses of an iteration that tokens.jsonl keeps, token by token"
    )
    checkpoint_every: int = Field(5, ge=0, description="iterations between checkpoints; 0 = only the last")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    on_reward_error: Literal["abort", "skip"] = Field(
        "abort", description="skip: an iteration whose reward fails teaches nothing; after three in a row the run ends"
    )
    reward_timeout_s: float | None = Field(
        None, gt=0, le=1e6, description="seconds that the rewards of a batch may take"
    )


class TokenizerConfig(Section):
    vocab_size: int = Field(1536, ge=259, le=1 << 20, description="tokens, the 3 special ones and 256 bytes included")


class ModelConfig(Section):
    path: str | None = Field(
        None,
        min_length=1,
        description="weights to start from in place of pretraining: a directory, smollm2, or ORG/NAME on the Hub",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the frozen weights behind adapters (lora); weights that learn are float32"
    )
    quantise: Literal["int8", "nf4"] | None = Field(
        None, description="pack the frozen projections in 8 or 4 bits (lora, bitsandbytes); left out: model.dtype"
    )
    layers: int = Field(2, ge=1, le=256, description="decoder blocks")
    hidden_size: int = Field(128, ge=2, le=65536, description="width")
    heads: int = Field(4, ge=1, description="query heads; divides hidden_size into an even head size")
    kv_heads: int = Field(4, ge=1, description="key and value heads (grouped-query attention); divides heads")
    intermediate_size: int = Field(256, ge=1, le=1 << 20, description="width of the SwiGLU block")
    max_positions: int = Field(128, ge=8, le=1 << 20, description="context: prompt and response, tokens")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    norm_eps: float = Field(1e-5, gt=0, description="added to the mean square in RMSNorm")
    separate_critic: bool = Field(
        True, description="values from a second trunk instead of a head on the policy's, if the run learns V"
    )


class LoRAConfig(Section):
    rank: int = Field(0, ge=0, le=4096, description="of the adapters that learn in place of the weights; 0: none")
    alpha: float = Field(16.0, gt=0, description="an adapter is scaled by alpha / rank")
    targets: tuple[str, ...] = Field(TARGETS, min_length=1, description="projections that have one")
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of an adapter's inputs that SFT and reward models drop as they learn",
    )
    path: str | None = Field(
        None, min_length=1, description="adapter to begin with, in PEFT's layout; its rank, alpha and targets hold"
    )

    @property
    def on(self) -> bool:
        """True if adapters learn beside a frozen backbone."""
        return self.rank > 0 or self.path is not None


class CorpusConfig(Section):
    text: str = Field("reviews", min_length=1, description="what to pretrain on: file, folder or packaged name")
    prompts: str | None = Field(
        None, min_length=1, description="training prompts; left out: packaged ones, or openings"
    )
    heldout_prompts: str | None = Field(None, min_length=1, description="evaluation prompts; else a fifth of prompts")
    demonstrations: str | None = Field(None, min_length=1, description="for SFT: prompt, completion; or messages")
    preferences: str | None = Field(None, min_length=1, description="comparisons: prompt, chosen, rejected")
    opening_words: int = Field(4, ge=1, description="length of an opening that serves as a prompt: words or characters")
    heldout_share: float = Field(0.02, gt=0, lt=1, description="documents held out for the pretraining loss")
    template: Literal["none", "chat"] = Field(
        "none", description="chat: prompts and answers go through the tokenizer's own chat template"
    )
    errors: Literal["strict", "replace"] = Field("strict", description="bytes that are not UTF-8: an error, or U+FFFD")

    @property
    def chat(self) -> bool:
        """True if texts go through the tokenizer's chat template."""
        return self.template == "chat"


class ExactConfig(Section):
    problem: str | None = Field(
        None, min_length=1, description="a problem of the exact lab in place of corpus and pretraining"
    )


LearningRate = Annotated[float, Field(gt=0, le=1e30, description="largest learning rate")]
Warmup = Annotated[int, Field(ge=0, description="steps of linear warm-up, at most half of all")]
WeightDecay = Annotated[float, Field(ge=0, description="decoupled (AdamW)")]


class TrainingSection(Section):
    """Settings of every stage that is trained step by step with AdamW; a stage sets its own defaults.

    batch_size and seed have none here: a stage says which rows a step takes, and what its seed decides.
    """

    batch_size: int
    lr: LearningRate = 1e-3
    warmup: Warmup = 10
    weight_decay: WeightDecay = 0.0
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    seed: int


class PretrainConfig(TrainingSection):
    steps: int = Field(425, ge=1, description="optimiser steps (never the clock)")
    batch_size: int = Field(32, ge=1, le=1 << 20, description="documents a step")
    sequence_length: int = Field(128, ge=2, description="longest piece of a document, tokens")
    lr: LearningRate = 8e-3
    warmup: Warmup = 50
    final_lr: float = Field(0.05, ge=0, le=1, description="share of lr at the end of the cosine")
    weight_decay: float = Field(0.3, ge=0, description="of matrices, decoupled (AdamW)")
    beta1: float = Field(0.85, ge=0, lt=1, description="Adam's decay of the mean")
    beta2: float = Field(0.95, ge=0, lt=1, description="Adam's decay of the mean square")
    seed: int = Field(0, ge=0, description="decides initial weights and data order; runs of all seeds share a base")


class SFTConfig(TrainingSection):
    epochs: int = Field(2, ge=1, description="passes over the demonstrations")
    batch_size: int = Field(32, ge=1, le=1 << 16, description="demonstrations a step")
    heldout_share: float = Field(0.05, gt=0, lt=1, description="prompts held out for the loss")
    seed: int = Field(0, ge=0, description="decides split and order")


class RewardModelConfig(TrainingSection):
    epochs: int = Field(3, ge=1, description="passes over the comparisons")
    batch_size: int = Field(32, ge=1, le=1 << 16, description="comparisons a step")
    lr: LearningRate = 1.5e-3
    warmup: Warmup = 20
    weight_decay: WeightDecay = 0.01
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="share of labels taken to be wrong")
    centring: float = Field(0.001, ge=0, description="weight of (score chosen + score rejected)^2")
    patience: int = Field(5, ge=1, description="looks at the held-out accuracy without a rise before it stops")
    heldout_share: float = Field(
        0.1, gt=0, lt=1, description="prompts held out for the report, and of the rest for when to stop"
    )
    samples: int = Field(256, ge=2, description="the base's own responses that scores are normalised on")
    pairs: int | None = Field(
        None, ge=2, description="use so many of the comparisons, drawn by the seed; left out: all"
    )
    ensemble: int = Field(1, ge=1, le=64, description="models trained, each with its own first head and order")
    seed: int = Field(0, ge=0, description="decides the head's first weights, split, order and draw")


class ComponentSection(Section):
    """A section that chooses a component; `options` holds its other keys."""

    options: dict[str, Any] = Field(default_factory=dict)


class RewardConfig(ComponentSection):
    use: str = Field(min_length=1, description="reward: NAME, OWNER:NAME or FILE.py:FUNCTION (left out: the label)")
    weight: float = Field(1.0, description="in the sum of the rewards")
    normalize: bool = Field(False, description="to mean 0, variance 1 over responses of the reference, before the run")
    clip: float | None = Field(None, gt=0, description="cut to +- this, after normalising and before weighing")


class KLConfig(ComponentSection):
    estimator: str = Field("k1", min_length=1, description="KL estimator: nats a token against the reference")
    place: Literal["reward", "loss", "both"] = Field("reward", description="where beta KL goes")
    coef: float = Field(0.075, ge=0, description="beta: score units per nat")
    controller: Literal["fixed", "adaptive"] = Field("fixed", description="beta fixed, or steered to `target`")
    target: float | None = Field(None, gt=0, description="adaptive: nats per sequence")
    horizon: int = Field(
        10000, ge=1, description="adaptive: over so many responses beta changes by a factor of 0.8 to 1.22 at most"
    )

    @property
    def in_reward(self) -> bool:
        """True if beta KL is subtracted from the rewards."""
        return self.place in ("reward", "both")

    @property
    def in_loss(self) -> bool:
        """True if beta KL is added to the loss."""
        return self.place in ("loss", "both")


class AdvantageConfig(ComponentSection):
    function: str = Field("gae", min_length=1, description="advantage function")
    whiten: Literal["auto", "batch", "population", "scale", "none"] = Field(
        "auto", description="auto: over the batch for functions of V, none for all others"
    )


class LossConfig(ComponentSection):
    policy: str = Field("ppo_clip", min_length=1, description="policy loss")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean", description="how token losses become one number"
    )
    value_coef: float = Field(0.2, ge=0, description="weight of the value loss, which is in units of V")
    value_clip: float = Field(
        0.0, ge=0, description="values may move this far from the old ones, in units of V; 0 = no clip"
    )
    penalty: float = Field(1.0, ge=0, description="beta of ppo_penalty: weight of KL(policy, the one that sampled)")
    penalty_target: float | None = Field(None, gt=0, description="steer that beta to this KL, nats per token")
    entropy_coef: float = Field(0.0, ge=0, description="weight of the entropy bonus")


class PPOConfig(Section):
    iterations: int = Field(40, ge=0, description="rollouts, each followed by its epochs")
    prompts_per_iteration: int = Field(128, ge=1, le=1 << 20, description="prompts a rollout")
    responses_per_prompt: int = Field(1, ge=1, le=1 << 16, description="responses a prompt: a group")
    epochs: int = Field(1, ge=1, description="passes over a rollout")
    minibatch_size: int = Field(16, ge=1, description="responses an optimiser step")
    micro_batch_size: int | None = Field(None, ge=1, description="responses a forward pass; same gradient, less memory")
    recompute: bool = Field(False, description="compute blocks again in the backward pass: same gradient, less memory")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the blocks' matrix products and attention while PPO runs"
    )
    lr: float = Field(2.5e-4, gt=0, le=1e30, description="learning rate")
    schedule: Literal["linear", "constant"] = Field("linear", description="linear: to 0 over the iterations")
    adam_eps: float = Field(1e-5, gt=0, description="Adam's epsilon")
    grad_clip: float = Field(1.0, gt=0, description="largest gradient norm")
    target_kl: float | None = Field(None, gt=0, description="stop the epochs at 1.5 x this approx_kl (nats a token)")
    critic_warmup: int = Field(0, ge=0, description="first iterations that train only the value head")
    score_slot: Literal["last", "after"] = Field(
        "last", description="where the score lands: on the last token, or one slot behind the EOS (TRL)"
    )
    score_clip: float | None = Field(None, gt=0, description="scores are cut to +- this")
    score_normalize: bool = Field(False, description="scores to mean 0, variance 1 over the run so far")


class SamplerConfig(Section):
    temperature: float = Field(0.7, ge=1e-3, le=1e3, description="of sampling and of every log-probability")
    max_new_tokens: int = Field(64, ge=1, description="longest response")


class TruncationConfig(Section):
    rule: Literal["keep", "penalty", "replace", "mask", "bootstrap"] = Field(
        "keep", description="what becomes of a response without EOS"
    )
    value: float | None = Field(None, description="penalty: subtracted; replace: the score")


class EvaluationConfig(Section):
    prompts: int = Field(256, ge=1, description="held-out prompts")
    residual_prompts: int = Field(32, ge=0, description="of them for J, best-of-n and residual_std; 0: none of these")
    residual_responses: int = Field(8, ge=2, le=1 << 16, description="responses of a side to each of those")
    best_of: int = Field(
        16,
        ge=0,
        le=1 << 16,
        description="largest n of best-of-n, whose responses the reference writes to each; below 4: none",
    )
    samples: int = Field(8, ge=0, description="of them shown side by side")
    bootstrap: int = Field(2000, ge=100, le=100_000, description="resamples of the interval")


class Config(Section):
    """One run. `config show` prints it, `config schema` describes it."""

    plugins: tuple[str, ...] = Field((), description="plugin files and modules to load")
    run: RunConfig = RunConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    lora: LoRAConfig = LoRAConfig()
    corpus: CorpusConfig = CorpusConfig()
    exact: ExactConfig = ExactConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SFTConfig = SFTConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    rewards: dict[str, RewardConfig] = Field(
        {"sentiment": RewardConfig(use="sentiment")}, description="label -> reward"
    )
    kl: KLConfig = KLConfig()
    advantage: AdvantageConfig = AdvantageConfig()
    loss: LossConfig = LossConfig()
    ppo: PPOConfig = PPOConfig()
    sampler: SamplerConfig = SamplerConfig()
    truncation: TruncationConfig = TruncationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


CHOOSERS = {"kl": "estimator", "advantage": "function", "loss": "policy"}  # section -> the key that names a component
