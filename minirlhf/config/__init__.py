"""The configuration of a run: its schema, and how files and flags become one."""
