"""A run's policy as a directory for others: whole weights for transformers, or the adapter for PEFT.

Of a run with adapters the adapter is written, or with `merge` the whole model, W + alpha/r B A in every projection. The
tokenizer's own files lie beside it. The value head stays in the run: nobody else has a place for it.
"""

import shutil
from pathlib import Path

import torch

from minirlhf.config.layers import load_config
from minirlhf.errors import UsageError
from minirlhf.models.lora import Adapted
from minirlhf.models.quantise import is_quantised
from minirlhf.pipeline.saved import config_file, open_run
from minirlhf.store.adapters import ADAPTER, ADAPTER_CONFIG, load_backbone, source_of
from minirlhf.store.files import complete_directory, read_json, write_json
from minirlhf.store.weights import save_transformer


def export_run(run: Path, out: Path, *, merge: bool, sets: tuple[str, ...] = ()) -> str:
    """Write the policy of a finished run into `out`, which must not exist; return a sentence on what was written."""
    if out.exists():
        raise UsageError("the directory exists", str(out.absolute()), "choose another, or remove it")
    config, _ = load_config(config_file(run), sets=sets, kinds=())
    models = open_run(run, config, torch.device("cpu"))
    trunk, tokenizer = models.policy.model, models.tokenizer
    if merge and not isinstance(trunk, Adapted):
        raise UsageError("the run has no adapter to merge", str(run), "leave out --merge: its weights are whole")
    with complete_directory(out) as temporary:
        if isinstance(trunk, Adapted) and not merge:
            shutil.copyfile(run / "model" / ADAPTER, temporary / ADAPTER)
            settings = read_json(run / "model" / ADAPTER_CONFIG)  # names the place where the base was in the run
            place = {"base_model_name_or_path": source_of(trunk.backbone).path}
            write_json(temporary / ADAPTER_CONFIG, settings | place)
            tokenizer.save(temporary)
            return f"an adapter of rank {trunk.adapter.rank} for PEFT, beside the tokenizer"
        whole = plain_trunk(trunk).merged() if isinstance(trunk, Adapted) else trunk
        save_transformer(temporary, whole, tokenizer)
    return f"a whole model for transformers, {sum(p.numel() for p in whole.parameters()):,} parameters"


def plain_trunk(trunk: Adapted) -> Adapted:
    """The same adapter beside plain weights: packed ones are read again as they lie on disk."""
    if not is_quantised(trunk.backbone):
        return trunk
    source = source_of(trunk.backbone)
    return Adapted(load_backbone(Path(source.path), source.dtype, torch.device("cpu")), trunk.adapter)
