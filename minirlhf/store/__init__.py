"""The run directory: files.py (whole or absent), checkpoint.py, model.py, metrics.py, lock.py."""
