"""The networks: transformer.py (the decoder), policy.py (LM head and value head on it)."""
