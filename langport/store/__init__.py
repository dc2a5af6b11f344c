"""What outlives a request: stored chat completions, responses, files and batches. Knows neither HTTP nor models."""
