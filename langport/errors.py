"""Every error LangPort raises on purpose, and what each one means over HTTP.

    LangPortError
    ├── ConfigError            the settings or the command line are wrong (start-up only)
    ├── CheckpointError        a model directory or hub id cannot be served (while a model loads only)
    │   └── OutOfMemory            it could be, with more memory
    └── ApiError               becomes an OpenAI error body; one class per status and code
        ├── InvalidRequest         400  invalid_request_error
        │   └── ContextLengthExceeded    400, code context_length_exceeded
        ├── AuthenticationFailed   401, code invalid_api_key
        ├── PermissionDenied       403, a setting forbids it
        ├── NotFound               404
        │   └── ModelNotFound            404, code model_not_found
        ├── MethodNotAllowed       405
        ├── PayloadTooLarge        413
        ├── RateLimited            429, with Retry-After
        │   ├── LargerThanLimit          429, would never be within the limit
        │   └── QuotaExceeded            429, code insufficient_quota: a budget is used up
        ├── EngineFailed           500, the engine could not finish this request
        ├── UpstreamFailed         502, code upstream_error: a remote server was not reached, broke off, made no sense
        │   └── UpstreamTimeout          504, code upstream_timeout
        └── Unavailable            503, with Retry-After
            ├── Overloaded               503, more is asked of the server than it can do
            ├── LimitsUnavailable        503, the store of limits is down, and the settings want that refused
            └── StoreUnavailable         503, the store of objects is down, full or too busy

Raise where you know what is wrong; `gateway.app` is the one place that turns an `ApiError` into bytes.
409 is never used: openai-python 0.28 retries it in a tight loop.
"""

from __future__ import annotations


class LangPortError(Exception):
    """Base of all errors that carry a message written for the user."""


class ConfigError(LangPortError):
    """One or more settings are wrong. `problems` holds all of them, one sentence each."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CheckpointError(LangPortError):
    """A checkpoint is missing, damaged or of a kind that cannot be served; the message names the file."""


class OutOfMemory(CheckpointError):
    """A checkpoint does not fit into the memory that is free now."""


MAX_MESSAGE = 1000
"""Characters of a message that a client sees: messages quote the request, which may be megabytes."""


class ApiError(LangPortError):
    """An error that an API client sees; of a message over MAX_MESSAGE the middle is left out.

    `param` names the request field at fault, `code` is OpenAI's machine-readable word (a string or None), and
    `retry_after_s` is said where the class's own would be wrong.
    """

    status = 500
    type = "server_error"
    default_code: str | None = None
    retry_after_s: float | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        message = _shortened(message)
        super().__init__(message)
        self.message = message
        self.param = None if param is None else _shortened(param)
        self.code = code if code is not None else self.default_code
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


def _shortened(text: str) -> str:
    if len(text) <= MAX_MESSAGE:
        return text
    half = (MAX_MESSAGE - len(_LEFT_OUT)) // 2
    return text[:half] + _LEFT_OUT + text[-half:]


_LEFT_OUT = " [...] "


class InvalidRequest(ApiError):
    """The request cannot be honoured as written."""

    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """Prompt, or prompt and completion, do not fit the model's context or a configured limit."""

    default_code = "context_length_exceeded"


class AuthenticationFailed(ApiError):
    """No key, or a key that is not known."""

    status = 401
    type = "invalid_request_error"
    default_code = "invalid_api_key"


class PermissionDenied(ApiError):
    """The server's settings do not allow this; the message says which one would."""

    status = 403
    type = "invalid_request_error"


class NotFound(ApiError):
    """No such path or object."""

    status = 404
    type = "invalid_request_error"


class ModelNotFound(NotFound):
    """No model is served under that name."""

    default_code = "model_not_found"


class MethodNotAllowed(ApiError):
    """The path exists, the method does not."""

    status = 405
    type = "invalid_request_error"


class PayloadTooLarge(ApiError):
    """The request body is larger than the server accepts."""

    status = 413
    type = "invalid_request_error"


class RateLimited(ApiError):
    """More is asked for than a limit allows; try again after `retry_after_s` seconds."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retry_after_s: float | None = 1.0


class LargerThanLimit(RateLimited):
    """One request asks for more than a limit allows in all; trying again is of no use."""

    retry_after_s = None


class QuotaExceeded(RateLimited):
    """A key's budget is used up; it is `retry_after_s` seconds until the next one begins."""

    type = "insufficient_quota"
    default_code = "insufficient_quota"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineFailed(ApiError):
    """The engine gave up on this request; the cause is in the server's log under the request id."""

    status = 500
    type = "server_error"


class UpstreamFailed(ApiError):
    """A remote server could not be reached, broke off, or answered what cannot be relayed; another one may do better.

    The message names the server by scheme, host and port, never by what is secret.
    """

    status = 502
    default_code = "upstream_error"
    retry_after_s = 1.0


class UpstreamTimeout(UpstreamFailed):
    """A remote server took longer than the settings allow."""

    status = 504
    default_code = "upstream_timeout"


class Unavailable(ApiError):
    """The model is starting, restarting or shutting down; try again after `retry_after_s` seconds."""

    status = 503
    type = "server_error"
    retry_after_s = 2.0


class Overloaded(Unavailable):
    """All places are taken and the queue is too long; try again after `retry_after_s` seconds."""

    default_code = "server_overloaded"


class LimitsUnavailable(Unavailable):
    """Nobody can tell whether the request is within its limits; those that run go on."""


class StoreUnavailable(Unavailable):
    """The store is down, full or too busy; requests that do not need it go on."""
