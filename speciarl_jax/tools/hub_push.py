"""Uploads an exported folder to the Hugging Face hub."""

import contextlib
import pathlib
from collections.abc import Iterator

import httpx2
import huggingface_hub
import yaml
from huggingface_hub import errors, utils

from speciarl_jax.runtime.messages import first_line
from speciarl_jax.tools import model_card
from speciarl_jax.tools.model_card import FILE as CARD
from speciarl_jax.tools.model_card import TAG

_HUBS_OWN = (".gitattributes",)  # a file that every repository has


def check_name(repo_id: str) -> None:
    """Refuses what is no name of a repository (ValueError)."""
    try:
        utils.validate_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(f"--push={repo_id}: {first_line(error)}") from None
    if "/" not in repo_id:
        raise ValueError(f"--push={repo_id} names no owner; give --push=OWNER/NAME")


def files(folder: pathlib.Path) -> dict[str, int]:
    """Returns the files that are uploaded, name -> bytes."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def check_before(repo_id: str, api: huggingface_hub.HfApi | None) -> None:
    """Refuses what cannot be pushed, before the work (ValueError); without `api` only the name."""
    check_name(repo_id)
    if api is not None:
        check_access(repo_id, api)


def write_card_and_push(
    folder: pathlib.Path,
    export: model_card.Export,
    *,
    private: bool,
    api: huggingface_hub.HfApi | None,
) -> None:
    """Writes the model card into an exported folder and uploads that, or says what it would.

    Args:
      folder: as `--out` was written.
      private: as for `push`.
      api: None contacts nobody (`--dry_run`).

    Raises:
      ValueError: as for `push` and `model_card.card`.
    """
    model_card.card(export).save(folder / CARD)
    found = files(folder)
    for name, size in found.items():
        print(f"{size:>14,} {name}")
    kind = "private" if private else "public"
    if api is None:
        print(f"dry run: {len(found)} files would go to {export.repo_id}, {kind} if it is new")
    else:
        print(push(folder, export.repo_id, private=private, api=api))


def check_access(repo_id: str, api: huggingface_hub.HfApi) -> None:
    """Refuses a push that cannot succeed, before anything is written.

    Raises:
      ValueError: no valid token, no way to the hub, or the repository holds something else than an
        earlier export of this package.
    """
    with _explained(repo_id, ""):
        api.whoami()
        try:
            present = set(api.list_repo_files(repo_id)) - {*_HUBS_OWN}
        except errors.RepositoryNotFoundError:
            return
        if present and not _is_export(repo_id, api, present):
            raise ValueError(
                f"{repo_id} holds other content ({', '.join(sorted(present)[:5])}), which an "
                "upload would mix with this one; give another name, or empty the repository first"
            )


def _is_export(repo_id: str, api: huggingface_hub.HfApi, present: set[str]) -> bool:
    """Whether a repository has the card of an earlier push."""
    if CARD not in present:
        return False
    path = api.hf_hub_download(repo_id, CARD)
    try:
        known = huggingface_hub.metadata_load(path) or {}
    except (ValueError, yaml.YAMLError):
        return False
    return TAG in (known.get("tags") or [])


def push(folder: pathlib.Path, repo_id: str, *, private: bool, api: huggingface_hub.HfApi) -> str:
    """Makes the repository if it is missing, and uploads all files in one commit.

    Files of an earlier export that this one has not are deleted in the same commit.

    Args:
      private: of a new repository; one that exists stays as it is.

    Returns:
      The address of the commit.

    Raises:
      ValueError: no right to write, or no way to the hub; says how to go on.
    """
    again = f"; {folder} is whole: once this is mended, `hf upload {repo_id} {folder}` uploads it"
    with _explained(repo_id, again):
        api.create_repo(repo_id, private=private, exist_ok=True)
        here = files(folder)
        stale = set(api.list_repo_files(repo_id)) - here.keys() - {*_HUBS_OWN}
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload an export of speciarl_jax",
            delete_patterns=sorted(stale) or None,
        )
    return done.commit_url


@contextlib.contextmanager
def _explained(repo_id: str, again: str) -> Iterator[None]:
    """Turns errors of the hub into a ValueError that says what to do."""
    try:
        yield
    except errors.LocalTokenNotFoundError:
        raise ValueError(
            "there is no token for the Hugging Face hub; run `hf auth login`, or set HF_TOKEN"
            + again
        ) from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status == 401:
            why = "the hub does not know the token; run `hf auth login` again, or set HF_TOKEN"
        elif status == 403:
            why = (
                f"the token may not write to {repo_id}; take one with the right to write "
                "(https://huggingface.co/settings/tokens), or a namespace of yours"
            )
        else:
            why = f"the hub refused the upload to {repo_id} ({first_line(error)})"
        raise ValueError(why + again) from error
    except (OSError, httpx2.TransportError, errors.OfflineModeIsEnabled) as error:
        raise ValueError(f"the hub is out of reach ({first_line(error)}){again}") from error
