"""The command line: one file a command, found lazily by main.py. It prints, and nothing else."""
