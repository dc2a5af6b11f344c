"""From what the user names to a directory on this machine: a path as it is, or a download from the hub.

huggingface_hub does the download and reads its own environment (HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE,
HF_TOKEN); it is imported only when a hub id has to be resolved.
"""

from __future__ import annotations

import errno
import logging
import re
import sys
from pathlib import Path

from langport.errors import CheckpointError

logger = logging.getLogger("langport")

WANTED = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.txt")
UNWANTED = ("*/*.safetensors", "consolidated*.safetensors", "onnx/*", "openvino/*")
"""Second copies of the weights: other formats' folders, and Mistral's own layout beside transformers'."""

CODE = ("*.py",)
"""Downloaded only where it may run."""
OLDER = ("pytorch_model*.bin", "adapter_model.bin")
"""Weights that are downloaded only where there are none in safetensors."""
WEIGHTS = ("*.safetensors", *OLDER)

HUB_ID = re.compile(r"(?P<id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[^@\s]+))?")


def resolve_model(reference: str, *, with_code: bool = False) -> Path:
    """The directory of a model: `reference` itself when it is one, else the hub id's files, downloaded.

    `with_code`: Python files as well.
    Raises: CheckpointError saying why there is no such directory or download, and what to do.
    """
    try:
        path = Path(reference).expanduser()
        is_there = path.exists()
    except (OSError, RuntimeError, ValueError):  # a name that is too long, ~somebody unknown, a zero byte
        raise _no_directory(reference) from None
    if path.is_dir():
        return path
    if path.suffix == ".gguf" and is_there:
        from langport.models.gguf import checkpoint_folder

        return checkpoint_folder(path)
    if is_there:
        raise CheckpointError(
            f"{reference} is a file. Give a .gguf file or the directory that holds the model's config.json."
        )
    match = HUB_ID.fullmatch(reference)
    if match is None or reference.startswith((".", "/", "~")):
        raise _no_directory(reference)
    return _download(match["id"], match["revision"], (*WANTED, *CODE) if with_code else WANTED)


def _no_directory(reference: str) -> CheckpointError:
    return CheckpointError(
        f"The directory {reference[:200]} does not exist. Give a model's directory, or a hub id such as "
        "Qwen/Qwen3-0.6B or Qwen/Qwen3-0.6B@main."
    )


def _download(repository: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    logger.info("%s: looking it up on %s", repository, constants.ENDPOINT)
    for patterns in (wanted, (*wanted, *OLDER)):
        try:
            directory = snapshot_download(
                repository,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(UNWANTED),
                library_name="langport",
            )
        except (HTTPError, OSError, RuntimeError, ValueError) as error:
            raise CheckpointError(_explain(error, repository, revision)) from error
        if any(file for pattern in WEIGHTS for file in Path(directory).glob(pattern)):
            return Path(directory)
    raise CheckpointError(
        f"{repository} has no safetensors or PyTorch weights on {constants.ENDPOINT}. Name a revision "
        f"that has them ({repository}@REVISION), or convert them with transformers' save_pretrained() "
        "and give that directory."
    )


def _explain(error: Exception, repository: str, revision: str | None) -> str:
    """What went wrong, for someone who does not know huggingface_hub, and what to do."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    match error:
        case errors.GatedRepoError():
            return (
                f"{repository} is gated on {endpoint}. Accept its terms on its page there, then set HF_TOKEN "
                "to a token of that account (or run `hf auth login`)."
            )
        case errors.RepositoryNotFoundError():
            return (
                f"There is no directory {repository} here, and no model of that name on {endpoint} that you "
                "may read. Check the spelling; if it is private, set HF_TOKEN."
            )
        case errors.RevisionNotFoundError():
            return f"{repository} has no revision {revision!r} on {endpoint}. Check the branch's or tag's name."
        case errors.HfHubHTTPError() if error.response.status_code in (401, 403):
            return f"{endpoint} refuses access to {repository} ({error.response.status_code}). Check HF_TOKEN."
        case OSError() if error.errno == errno.ENOSPC:
            return (
                f"The disk is full: {repository} does not fit under {constants.HF_HUB_CACHE}. Free some "
                "space there or set HF_HOME to a larger disk."
            )
        case errors.HFValidationError():
            return f"{repository} is neither a directory nor a hub id such as Qwen/Qwen3-0.6B."
    if constants.HF_HUB_OFFLINE:
        return (
            f"{repository} is not complete in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to "
            "download it. Unset HF_HUB_OFFLINE once, or give a directory."
        )
    reason = str(error.__cause__ or error).partition("\n")[0]
    return (
        f"{repository} could not be downloaded from {endpoint}: {reason}. Check the network, or set "
        "HF_ENDPOINT to a mirror that is reachable; what is already downloaded is kept."
    )
