"""The engine: a client in the API's process, a worker process that owns the device, and the step loop between."""
