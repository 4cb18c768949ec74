"""A configuration becomes a run: building, driving, saving, resuming, evaluating."""
