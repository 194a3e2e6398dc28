"""A release on a model hub: its files and no others, in one commit, and held against what then lies there.

Spoken to by `huggingface_hub`, which finds the token where `hf auth login` or HF_TOKEN put it. It is kept
nowhere, and told in no error.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1, sha256
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.errors import EndpointError, GateRefused, StillhouseError, UsageError
from stillhouse.ledger import Ledger, oms
from stillhouse.ledger.disclosure import disclosed
from stillhouse.ledger.manifest import BROUGHT, NAME, Manifest, read_manifest, sha256_of
from stillhouse.ledger.quarantine import quarantined
from stillhouse.release import PROOFS

if TYPE_CHECKING:
    from huggingface_hub import HfApi, RepoFile


@dataclass(frozen=True, slots=True)
class Pushed:
    """`commit` is 40 hex digits; `new` is False where the same files lay there already, and none was sent."""

    url: str
    commit: str
    files: int
    private: bool
    new: bool


def push(folder: Path, repository: str, branch: str, private: bool, replace: bool) -> Pushed:
    """Publish a release that was verified as `repository` (ORG/NAME), which is made where there is none.

    The files of the manifest, the manifest and `model.sig` go into one commit on `branch`, so that nobody
    sees a part of them. With `replace` the commit also takes away what else the branch holds.

    Raises GateRefused for a release whose weights were not to be given out; UsageError for a name that is
    none, without a token, where the repository holds other files, or is public and `private` is asked for;
    EndpointError where the hub refuses, cannot be reached, or does not hold the release afterwards.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    manifest = read_manifest((folder / NAME).read_bytes())
    may_be_given_out(folder)
    wanted = _wanted(folder, manifest)
    if "/" not in repository:
        raise _unnamed(repository, "it does not say under whom it lies")
    api = HfApi(token=True, library_name="stillhouse", library_version=version("stillhouse"))
    token = _token(api.endpoint, repository)
    with _hub(api.endpoint, repository, token):
        try:
            is_private = bool(api.repo_info(repository).private)
        except RepositoryNotFoundError:
            api.create_repo(repository, private=private or None)
            is_private = bool(api.repo_info(repository).private)
        if private and not is_private:
            raise UsageError(
                f"{repository} is public", "--private is given", "make it private on the hub, or give another"
            )
        try:
            head, ours = str(api.repo_info(repository, revision=branch).sha), False
        except RevisionNotFoundError:
            api.create_branch(repository, branch=branch)
            head, ours = str(api.repo_info(repository, revision=branch).sha), True
        there = _there(api, repository, head, wanted)
        url = f"{api.endpoint}/{repository}"
        if not _differing(folder, there, wanted):
            return Pushed(url, head, len(wanted), is_private, False)
        if there and not (replace or ours):
            raise UsageError(
                f"{repository} holds other files than this release",
                f"on {branch} lie {_some(there)}",
                "--replace puts this release in their place (the history keeps them); or give another name",
            )
        gone = [CommitOperationDelete(name, is_folder=False) for name in sorted(there.keys() - wanted)]
        come = [CommitOperationAdd(name, folder / name) for name in wanted]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
            done = api.create_commit(
                repository,
                [*gone, *come],
                commit_message=f"Release {manifest.release}",
                revision=branch,
                parent_commit=head,
            )
        wrong = _differing(folder, _there(api, repository, done.oid, wanted), wanted)
    if wrong:
        raise EndpointError(
            f"{repository} does not hold the release as it was sent",
            f"in the commit {done.oid} differ {_some(wrong)}",
            "look whether its .gitignore leaves them out, and push with --replace",
        )
    return Pushed(url, done.oid, len(wanted), is_private, True)


def may_be_given_out(folder: Path) -> None:
    """Raises GateRefused where the log's release does not say that its weights are given out."""
    mode = None
    for leaf in disclosed(folder / PROOFS):
        if leaf.kind == "release":
            mode = leaf.body.get("mode")
    if mode != "weights":
        raise GateRefused(
            f"{folder} is not a release whose weights may be given out",
            f'it was made with release.mode = "{mode}", and what is owed was settled for that alone',
            'set [release] mode = "weights" in the recipe, and run `stillhouse release RECIPE` again',
        )


def none_recalled_since(folder: Path, ledger: Ledger) -> bool:
    """Whether this ledger can tell of recalls, for the release was made from it. Raises GateRefused where one
    of the decisions by which the student learned, or was released, is recalled there now."""
    shown = {leaf.index: leaf for leaf in disclosed(folder / PROOFS)}
    release = next((leaf for leaf in shown.values() if leaf.kind == "release"), None)
    origin = read_manifest((folder / NAME).read_bytes()).origin
    if release is None or ledger.origin != origin or release not in ledger.pick([release.index]):
        return False
    learned = {*release.body["decisions"]}
    for leaf in shown.values():
        if leaf.kind == "row":
            learned |= {shown[answer].body["decision"] for answer in leaf.body["exchanges"]}
        elif leaf.kind == "exchange" and leaf.body.get("stage") == "read":
            learned.add(leaf.body["decision"])
    if gone := sorted(learned & quarantined(ledger)):
        raise GateRefused(
            f"what {folder} was made under has been recalled since",
            f"the decisions {gone} are recalled in the ledger that it was made from",
            "`stillhouse run RECIPE` makes one without what they cover; or lift it: "
            "`stillhouse ledger recall --lift`",
        )
    return True


def _wanted(folder: Path, manifest: Manifest) -> dict[str, str]:
    """SHA-256 (hex) by path of what is published."""
    signed = [name for name in (NAME, oms.NAME) if (folder / name).is_file()]
    return {**manifest.files, **{name: sha256_of(folder / name) for name in signed}}


def _there(api: HfApi, repository: str, commit: str, wanted: Mapping[str, str]) -> dict[str, RepoFile]:
    """The files of a commit, without what the hub itself lays beside them."""
    from huggingface_hub import RepoFile

    tree = api.list_repo_tree(repository, recursive=True, revision=commit)
    files = {each.path: each for each in tree if isinstance(each, RepoFile)}
    return {name: file for name, file in files.items() if name in wanted or name != BROUGHT[0]}


def _differing(folder: Path, there: Mapping[str, RepoFile], wanted: Mapping[str, str]) -> list[str]:
    """Files that lie only here, only there, or are not the same."""
    alone = there.keys() ^ wanted.keys()
    both = there.keys() & wanted.keys()
    return sorted(alone | {name for name in both if _digest(folder, there[name]) != wanted[name]})


def _digest(folder: Path, file: RepoFile) -> str:
    """SHA-256 (hex) of a file at the hub. Of one outside LFS the hub tells the object id of git alone: where
    that is the same as of the file here, it is this one's."""
    if file.lfs is not None:
        return str(file.lfs.sha256)
    data = (folder / file.path).read_bytes()
    here = sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return sha256(data).hexdigest() if here == file.blob_id else ""


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(sorted(names)[:3]) + more


def _token(endpoint: str, repository: str) -> str:
    from huggingface_hub import get_token

    with _hub(endpoint, repository, ""):
        token = get_token()
    if not token:
        raise UsageError(
            f"there is no token for {endpoint}",
            "a repository is written to in somebody's name",
            "`hf auth login`, or set HF_TOKEN",
        )
    if not (token.isascii() and token.isprintable()):
        raise UsageError(
            f"the token for {endpoint} is damaged",
            "it holds characters that no header may",
            "`hf auth login`, or set HF_TOKEN anew",
        )
    return token


@contextmanager
def _hub(endpoint: str, repository: str, token: str) -> Iterator[None]:
    """Turn what the client raises into errors with three parts, which do not tell the token."""
    try:
        yield
    except StillhouseError:
        raise
    except Exception as error:  # what the client and its uploaders raise is in no list
        found = _said(error, endpoint, repository)
        if token:
            found.why = found.why.replace(token, "(the token)")
        raise found from None


def _said(error: BaseException, endpoint: str, repository: str) -> StillhouseError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if isinstance(error, HFValidationError):
        return _unnamed(repository, str(error))
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    if cause is None:
        return EndpointError(
            f"the release did not reach {repository}",
            f"{type(error).__name__}: {error}",
            "run the same command again: what has arrived is not sent twice, nor seen before the commit",
        )
    owner, status = repository.partition("/")[0], cause.response.status_code
    changed = f"{repository} was changed meanwhile", "look at it, and run the same command again"
    what, mend = {
        401: ("the hub does not know this token", "`hf auth login`, or set HF_TOKEN to another"),
        403: (f"this token may not write to {repository}", f"use one that may write for {owner}"),
        409: changed,
        412: changed,
    }.get(status, (f"the hub did not take the release for {repository}", "mend that, or try again later"))
    return EndpointError(what, f"{endpoint} answered {status}: {cause.server_message or cause}", mend)


def _unnamed(repository: str, why: str) -> UsageError:
    return UsageError(f"{repository!r} is no name of a repository", why, "give ORG/NAME, or USER/NAME")
