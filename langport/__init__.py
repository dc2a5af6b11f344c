"""LangPort serves language models behind OpenAI's API."""

__version__ = "0.1.0"
