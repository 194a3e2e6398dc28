"""`stillhouse push`: a release on a model hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stillhouse.cli.options import Json


def push(
    release: Annotated[Path, typer.Argument(metavar="RELEASE", help="The folder of a release.")],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="The repository; made where there is none.")
    ],
    revision: Annotated[
        str, typer.Option(metavar="BRANCH", help="The branch; made where there is none.")
    ] = "main",
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private; one that is public is refused.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in place of what the branch holds; the history stays.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Publish a release on the Hugging Face Hub, in one commit, where `audit verify` finds no fault in it."""
    from stillhouse.audit import verify
    from stillhouse.cli import show
    from stillhouse.errors import LedgerError
    from stillhouse.ledger import Ledger
    from stillhouse.pipeline import need_extra
    from stillhouse.release.hub import none_recalled_since
    from stillhouse.release.hub import push as publish
    from stillhouse.workspace import find_workspace

    need_extra("hub", ("huggingface_hub",))
    from huggingface_hub.utils.tqdm import disable_progress_bars

    faults = [f"{check.name}: {check.detail}" for check in verify(release).checks if not check.ok]
    if faults:
        raise LedgerError(
            f"{release} does not verify, so it is not published",
            "\n".join(faults),
            f"`stillhouse audit verify {release}` shows every check",
        )
    looked = False
    here = (find_workspace(release), find_workspace(Path.cwd()))
    for workspace in {each for each in here if each is not None}:
        with Ledger.open(workspace) as ledger:
            looked |= none_recalled_since(release, ledger)
    if as_json or not sys.stderr.isatty():
        disable_progress_bars()
    done = publish(release, repository, revision, private, replace)
    found = {
        "url": done.url,
        "commit": done.commit,
        "revision": revision,
        "files": done.files,
        "private": done.private,
        "new": done.new,
        "recalls_looked_at": looked,
    }
    state = f"{done.files:,} files" if done.new else "nothing, for the same files lie there already"
    lines = [
        f"published  {state}",
        f"url        {done.url}{' (private)' if done.private else ''}",
        f"commit     {done.commit}",
        "recalls    none"
        if looked
        else "recalls    not looked at: the ledger that it was made from is not here",
        f"check      hf download {repository} --revision {done.commit} --local-dir FOLDER, then"
        " stillhouse audit verify FOLDER",
    ]
    show.result(found, "\n".join(lines), as_json)
