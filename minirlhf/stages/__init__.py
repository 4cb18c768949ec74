"""How each model is made and measured: pretraining, SFT, reward model, evaluation."""
