"""`tandem models download`: the weights of a model's local deployments, into the Hub's cache.

Safetensors only: the older formats can run code when they are read.
"""

from __future__ import annotations

import os
import sys

from config.schema import BUILTIN_PREFIX, LOCAL_KINDS, Deployment, ModelSpec, Settings
from gateway.startup import CannotStart

EXIT_FAILED = 1
CHAT_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "LICENSE*")
# A pipeline's weights lie in folders; beside them some repositories keep the same weights once more as one file.
IMAGE_FILES = ("*/*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "LICENSE*")
SECOND_COPIES = ("*.fp16.safetensors", "*.fp16.safetensors.index.json", "*non_ema*", "original/*", "onnx/*", "*/onnx/*")


def download(settings: Settings, name: str) -> int:
    """Fetch what this model needs. Returns 0, or 1 if the download failed. Raises CannotStart."""
    model = settings.model(name)
    if model is None:
        known = ", ".join(model.name for model in settings.models)
        raise CannotStart(f"unknown model '{name}'; the models of profile {settings.profile} are: {known}")
    wanted = downloadable(settings, model)
    if not wanted:
        print(f"{name}: nothing to download; its deployments are hosted, come with Tandem, or are folders of yours")
        return 0
    return max(_fetch(repository, model.kind) for repository in wanted)


def downloadable(settings: Settings, model: ModelSpec) -> list[str]:
    """Hub ids behind the local deployments of a model."""
    return [deployment.model for deployment in model.deployments if _is_from_hub(settings, deployment)]


def _is_from_hub(settings: Settings, deployment: Deployment) -> bool:
    is_local = settings.upstreams[deployment.upstream].kind in LOCAL_KINDS
    return is_local and not deployment.model.startswith((BUILTIN_PREFIX, "/"))


def _fetch(repository: str, kind: str) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    print(f"downloading {repository}", flush=True)
    try:
        path = snapshot_download(
            repository, allow_patterns=list(IMAGE_FILES if kind == "image" else CHAT_FILES), ignore_patterns=list(SECOND_COPIES)
        )
    except HFValidationError:
        print(f"tandem: '{repository}' is neither a Hub id (owner/name) nor a path (./... or /...)", file=sys.stderr)
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        # The client wraps every failure to ask the Hub as "not in the cache either"; the cause tells a refusal from silence.
        refusal = error if isinstance(error, HfHubHTTPError) and error.response is not None else error.__cause__
        if isinstance(refusal, HfHubHTTPError) and refusal.response is not None:
            status = refusal.response.status_code
            print(f"tandem: the Hub refuses {repository} with status {status}; {_remedy(status)}", file=sys.stderr)
        else:
            print(f"tandem: cannot reach the Hub for {repository}; check the network, then run the same command again", file=sys.stderr)
    except OSError as error:
        print(f"tandem: downloading {repository} stopped: {error}; run the same command again to go on", file=sys.stderr)
    else:
        print(f"{repository} is in {path}")
        return 0
    return EXIT_FAILED


def _remedy(status: int) -> str:
    if status in (401, 403, 404):
        return "check the name; a gated or private model needs HF_TOKEN and its terms accepted on the Hub"
    return "run the same command again later"
