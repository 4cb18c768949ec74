"""Sources of a run, read and checked before anything is trained, so that a fault of a file costs no time.

Not here: reading and splitting the files (stages/data.py, text/), and fitting prompts to the context.
"""

from dataclasses import dataclass

import torch

from minirlhf.components.component import INPUTS
from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config, RewardConfig
from minirlhf.models.quantise import check_quantiser
from minirlhf.pipeline.build import Components, build_components, build_rewards, filled_rewards
from minirlhf.rewards.call import RewardModels
from minirlhf.stages.base import base_directory, own_sizes, problem_of, read_sft_data
from minirlhf.stages.data import Candidates, lab_candidates, load_documents, read_candidates
from minirlhf.stages.model_source import look_at_start
from minirlhf.stages.preferences import read_pairs
from minirlhf.text.files import is_packaged


@dataclass(frozen=True)
class Sources:
    """Prompts and components of a run, before there is a model.

    candidates: prompts that may still be too long. reward_sections: the config's, with every path filled in.
    rewards: those that can be built already. waiting: labels of the others, whose reward model is not trained yet.
    """

    candidates: Candidates
    components: Components
    reward_sections: dict[str, RewardConfig]
    rewards: RewardModels
    waiting: list[str]


def check_sources(config: Config, registry: Registry, device: torch.device) -> Sources:
    """Read every file of the corpus and build every component that needs no model of this run (UserError)."""
    check_quantiser(config.model.quantise)
    look_at_start(config, own_sizes(config.model, config.tokenizer.vocab_size))
    candidates = read_run_prompts(config)
    read_sft_data(config)
    sections, waiting = filled_rewards(config)
    if waiting:
        read_pairs(config)
    components = build_components(config, registry, device)
    ready = {label: section for label, section in sections.items() if label not in waiting}
    rewards = build_rewards(ready, registry, device)
    rewards.check_columns(candidates.columns)
    return Sources(candidates, components, sections, rewards, waiting)


def read_run_prompts(config: Config) -> Candidates:
    """The prompts of a run, or of its problem of the exact lab.

    Documents are read where prompts are made of them, and where the base is still to be trained on them: their faults
    are then found early.
    """
    problem, corpus = problem_of(config), config.corpus
    if problem is not None:
        return lab_candidates(problem)
    needed = not (corpus.prompts or is_packaged(corpus.text)) or not base_directory(config).exists()
    return read_candidates(corpus, load_documents(corpus) if needed else None, INPUTS["reward"])
