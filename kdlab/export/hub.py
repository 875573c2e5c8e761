"""Put an export on the Hugging Face Hub, and say what is in the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdlab.errors import ConfigError, HubError
from kdlab.hub import endpoint


def check_repository(name: str) -> None:
    """Raises ConfigError for what can be no repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
        whole = re.fullmatch(r"[^/]+/[^/]+", name) is not None
    except HFValidationError:
        whole = False
    if not whole:
        raise ConfigError([f"--push {name}: give owner/name, of letters, digits, '-', '_' and '.'"])


def push(folder: Path, repository: str, *, private: bool, force: bool) -> str:
    """Create the repository and upload the folder; returns its address.

    force: also into a repository that there is already; private then refuses one that is public.

    Raises HubError; the token is in no message. The folder stays as it is.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        raise _problem("the Hub is switched off", folder, "unset HF_HUB_OFFLINE")
    token = get_token()
    if not token:
        raise _problem(
            "there is no token for the Hub", folder, "set HF_TOKEN to one that may write, or `hf auth login`"
        )
    api = HfApi(token=token)
    with _hub_errors(folder, repository, token):
        made = api.create_repo(repository, private=private or None, exist_ok=force)  # None: as the owner's default
        if private and force and not api.model_info(repository).private:
            raise _problem(
                f"{repository} is there already and is public", folder, "choose another name, or push without --private"
            )
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="A student exported by kdlab")
    return str(made)


@contextmanager
def _hub_errors(folder: Path, repository: str, token: str) -> Iterator[None]:
    """What goes wrong with a request becomes a HubError."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HubError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        owner = repository.partition("/")[0]
        known = {
            401: ("the Hub does not know this token", "set HF_TOKEN to a valid one, or `hf auth login`"),
            403: (
                f"this token may not write to {owner}",
                f"use one with write access to {owner}, or push to a name of your own",
            ),
            409: (
                f"the Hub has a repository {repository} already",
                "choose another name, or give --force to add a commit to it",
            ),
        }
        said = (error.server_message or str(error)).replace(token, "***").strip().splitlines()[:1]
        what, fix = known.get(status, (f"the Hub refused with {status}: {''.join(said)}", "try again later"))
        raise _problem(what, folder, fix) from error
    except Exception as error:  # of the network, by whatever library the Hub's client asks
        raise _problem(f"the Hub can't be reached ({type(error).__name__})", folder, "check the network") from error


def _problem(what: str, folder: Path, fix: str) -> HubError:
    return HubError(
        f"{what}; nothing is lost: the export is in {folder}",
        where=endpoint(),
        fix=f"{fix}; then export again with --force",
    )
