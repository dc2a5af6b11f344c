"""OpenAI's API over any engine."""
