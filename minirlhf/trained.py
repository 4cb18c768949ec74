"""The reward `trained`: a reward model that `minirlhf reward-model` (or anyone, in that layout) has saved.

A built-in plugin like those of builtin/, in a room of its own because it reads files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minirlhf import hookimpl
from minirlhf.reward_model import text_ids
from minirlhf.store.files import verify
from minirlhf.store.model import SCORE, load_scorer, read_json
from minirlhf.text.tokenizer import Tokenizer


class trained:
    """The normalised score of a saved reward model: mean 0 and standard deviation 1 over its base's responses.

    `path` is the directory; a run with `corpus.preferences` trains one from them and fills it in. With the policy's own
    tokenizer the sampled ids are scored as they are; else the texts are encoded again. A response that was cut has no
    EOS, and is scored without one.
    """

    def __init__(self, *, path: str = "") -> None:
        if not path:
            raise ValueError("give rewards.trained.path, or corpus.preferences to train one from")
        directory = Path(path)
        if not (directory / SCORE).is_file():
            raise ValueError(f"{path} is no saved reward model: give a directory that `minirlhf reward-model` has made")
        verify(directory)
        self.model = load_scorer(directory).eval().requires_grad_(False)
        self.tokenizer = Tokenizer.load(directory)
        self.hash = read_json(directory / SCORE).get("tokenizer")

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        rollout: Any,
        trainer_state: Any,
    ) -> list[float]:
        if trainer_state.tokenizer_hash == self.hash:
            rows = [[*prompt, *completion] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
        else:
            ended = rollout.terminated.tolist()
            rows = [text_ids(self.tokenizer, *texts) for texts in zip(prompts, completions, ended, strict=True)]
        longest = self.model.model.config.max_position_embeddings
        self.model.to(rollout.mask.device)
        scores: list[float] = self.model.scores([row[:longest] for row in rows]).tolist()
        return scores


@hookimpl
def register_reward_models() -> Mapping[str, Any]:
    return {"trained": trained}
