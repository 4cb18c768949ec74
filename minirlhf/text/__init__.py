"""Text in and out: corpus.py reads documents and prompts, tokenizer.py turns text into ids and back."""
