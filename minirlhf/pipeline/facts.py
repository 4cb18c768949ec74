"""Facts that a result depends on: versions, and hashes of data and code. Checkpoints store them.

Not here: the comparison of today's facts with those of a checkpoint (resume.py).
"""

import ast
import hashlib
import json
import platform
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import minirlhf
from minirlhf import PROJECT
from minirlhf.components.component import Built
from minirlhf.config.paths import OPTION, PATHS
from minirlhf.config.schema import Config, RewardConfig, RunConfig
from minirlhf.errors import UserError
from minirlhf.pipeline.build import TRAINED_REWARD_NAMES
from minirlhf.stages.data import Prompts
from minirlhf.store.adapters import ADAPTER_CONFIG, model_hash
from minirlhf.store.classifiers import is_classifier
from minirlhf.store.files import MANIFEST, sha256
from minirlhf.text.corpus import Prompt
from minirlhf.text.files import corpus_files, is_packaged
from minirlhf.text.tokenizer import Tokenizer

MADE_OF = ("minirlhf", "torch", "sources", "code")  # facts that evaluation.json keeps


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
    """The config; SHA-256 of the tokenizer, the prompts, the reward models, the named files and the plugins' code.

    rewards: the `path` of a trained one is the directory of a reward model. What a plugin does with a `path` is its own
    affair: it may write to it. used: the components of the run; built-in ones are covered by the version.
    """
    texts = [[_prompt_content(prompt) for prompt in part] for part in (prompts.train, prompts.heldout)]
    models = {str(r.options["path"]) for r in config.rewards.values() if r.use in TRAINED_REWARD_NAMES and has_path(r)}
    named = {*corpus_sources(config), *models}
    hashes = [model_of_reward(reward) for reward in rewards]
    files = {Path(built.component.path) for built in used if built.component.owner != PROJECT}
    return {
        "config": config.model_dump(mode="json"),
        "tokenizer": tokenizer.hash,
        "prompts": hashlib.sha256(json.dumps(texts, sort_keys=True, default=str).encode()).hexdigest(),
        "reward_models": ", ".join(found for found in hashes if found is not None),
        "sources": {source: found for source in sorted(named) if (found := source_hash(source)) is not None},
        "code": {str(path): sha256(path) for path in sorted(with_imports(files))},
    }


def _prompt_content(prompt: Prompt) -> list[Any]:
    """Everything of a prompt that decides a run, as JSON; a plain one as it always was."""
    return [prompt.text, prompt.columns, *([] if prompt.spoken is None else [prompt.spoken])]


def corpus_sources(config: Config) -> list[str]:
    """Paths that [corpus], [model] and [lora] name; packaged corpora are covered by the version."""
    given = [*(getattr(config.corpus, key) for key in PATHS), config.model.path, config.lora.path]
    return [] if config.exact.problem else [path for path in given if path is not None and not is_packaged(path)]


def has_path(reward: RewardConfig) -> bool:
    """True for a reward with an option `path`."""
    return isinstance(reward.options.get(OPTION), str) and reward.options[OPTION] != ""


def model_of_reward(reward: RewardConfig) -> str | None:
    """SHA-256 of the saved reward model at a reward's `path`, None if there is none."""
    path = Path(str(reward.options.get("path")))
    if (path / MANIFEST).is_file():
        return sha256(path / MANIFEST)
    foreign = reward.use in TRAINED_REWARD_NAMES and is_classifier(path)
    return model_hash(path) if foreign else None


def source_hash(path: str) -> str | None:
    """SHA-256 of what lies at a path: a model, a manifest, a file, or a folder of texts; None if nothing."""
    if (Path(path) / MANIFEST).is_file():
        return sha256(Path(path) / MANIFEST)
    if (Path(path) / "config.json").is_file() or (Path(path) / ADAPTER_CONFIG).is_file():
        return model_hash(Path(path))
    if Path(path).is_file():
        return sha256(Path(path))
    try:
        return hashlib.sha256("".join(sha256(file) for file in corpus_files(path)).encode()).hexdigest()
    except UserError:  # an option `path` may name anything; a corpus has been read before
        return None


def changed_since(made_of: Any) -> dict[str, str]:
    """Files that hold something else than when a run was made of them (`made_of` of evaluation.json): path -> hash now.

    A file that is gone has not changed: what needs it will say so.
    """
    found = dict[str, str]()
    for part in ("sources", "code"):
        named = made_of.get(part) if isinstance(made_of, dict) else None
        for path, digest in named.items() if isinstance(named, dict) else ():
            now = source_hash(path)
            if now is not None and now != digest:
                found[path] = now
    return found


def with_imports(files: Iterable[Path]) -> set[Path]:
    """These plugin files, and the files that they import, directly or not, from outside the installed packages."""
    found, waiting = set[Path](), list(files)
    while waiting:
        path = waiting.pop()
        if path not in found and path.is_file():
            found.add(path)
            waiting += [file for name in imported_names(path) if (file := own_file(name)) is not None]
    return found


def imported_names(path: Path) -> set[str]:
    """Modules that the import statements of a Python file name; none if it is no Python."""
    names = set[str]()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a compiled module, say: its own hash is all there is
        return names
    package = next((m.__package__ for m in list(sys.modules.values()) if getattr(m, "__file__", "") == str(path)), "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = (package or "").split(".")
            base = ".".join([*above[: len(above) - node.level + 1], node.module or ""]) if node.level else node.module
            base = (base or "").strip(".")
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def own_file(name: str) -> Path | None:
    """File of a loaded module that belongs neither to Python, nor to an installed package, nor to this one."""
    file = getattr(sys.modules.get(name), "__file__", None)
    if not isinstance(file, str) or name.partition(".")[0] == PROJECT:
        return None
    path = Path(file).resolve()
    library = Path(sysconfig.get_path("stdlib")).resolve()
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return None if installed or path.is_relative_to(library) else path
