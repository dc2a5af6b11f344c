"""A byte-level tokenizer on disk and a small client, so that handlers run over `FakeEngine` as they would live."""
