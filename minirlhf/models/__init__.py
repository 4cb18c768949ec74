"""Networks and everything that computes with them: decoder, policy, reward model, sampling, decoding, optimiser."""
