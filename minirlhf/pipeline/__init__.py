"""The stages of a run in their order: a configuration becomes a run directory."""
