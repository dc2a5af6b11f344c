"""Text on its way in and out: tokenizer, chat templates, detokenizer, stop strings. Never imports torch."""
