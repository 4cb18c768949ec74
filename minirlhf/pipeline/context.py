"""The run that is under way, as every stage sees it. Not here: what the stages make (models, prompts, results)."""

from dataclasses import dataclass
from pathlib import Path

import torch

from minirlhf.components.registry import Registry
from minirlhf.config.schema import Config
from minirlhf.events import Emit


@dataclass(frozen=True)
class RunContext:
    """Configuration, plugins, device and directory of one run, and the sink of its events."""

    config: Config
    registry: Registry
    device: torch.device
    directory: Path
    emit: Emit

    def warn(self, message: str) -> None:
        """Emit a warning event."""
        self.emit({"event": "warning", "message": message})
