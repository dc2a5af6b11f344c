"""`langport check URL`: does a server keep to OpenAI's API, as its clients rely on it?

It knows nothing of LangPort but its errors, so it can be asked about any server.
"""
