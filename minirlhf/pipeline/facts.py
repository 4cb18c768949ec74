"""Facts that a result depends on: versions, and hashes of data and code. Checkpoints store them.

Not here: the comparison of today's facts with those of a checkpoint (resume.py).
"""

import hashlib
import json
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import minirlhf
from minirlhf import PROJECT
from minirlhf.components.component import Built
from minirlhf.config.schema import Config, RewardConfig, RunConfig
from minirlhf.stages.data import Prompts
from minirlhf.store.files import MANIFEST, sha256
from minirlhf.text.tokenizer import Tokenizer


def versions(run: RunConfig, device: torch.device) -> dict[str, Any]:
    """Preset, device and number of threads; versions of minirlhf, torch and Python."""
    return {
        "preset": run.preset,
        "device": str(device),
        "threads": run.threads,
        "minirlhf": minirlhf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def data_facts(
    config: Config, tokenizer: Tokenizer, prompts: Prompts, rewards: Iterable[RewardConfig], used: Iterable[Built]
) -> dict[str, Any]:
    """The config; SHA-256 of the tokenizer, the prompts, the reward models and the plugins' files.

    rewards: their `path` option, where there is one, is the directory of a reward model. used: the components of the
    run; built-in ones are covered by the version.
    """
    texts = [[[prompt.text, prompt.columns] for prompt in part] for part in (prompts.train, prompts.heldout)]
    manifests = [Path(str(reward.options.get("path"))) / MANIFEST for reward in rewards]
    files = {Path(built.component.path) for built in used if built.component.owner != PROJECT}
    return {
        "config": config.model_dump(mode="json"),
        "tokenizer": tokenizer.hash,
        "prompts": hashlib.sha256(json.dumps(texts, sort_keys=True, default=str).encode()).hexdigest(),
        "reward_models": ", ".join(sha256(path) for path in manifests if path.is_file()),
        "code": {str(path): sha256(path) for path in sorted(files) if path.is_file()},
    }
