"""Stages: making and measuring each model (pretraining, SFT, reward model, evaluation)."""
