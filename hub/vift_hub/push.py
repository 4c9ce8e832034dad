"""Publish a VIFT on the Hub: one complete commit, made only if the folder loads back.

Weights (safetensors, sharded), config, code, `custom_generate/`, processor, chat template, generation config, model
card and `.eval_results/` go up in one commit: a run that breaks off publishes nothing, and removes the repository that
it made. A second commit pins the card's snippets to the first. The token is the one of `hf auth login`, or HF_TOKEN.
What the source's README.md and `.eval_results/` hold (`vift card`) is published, what the repository's hold is kept.
"""

import argparse
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from huggingface_hub import CardData, CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, httpx, validate_repo_id
from safetensors import SafetensorError

from . import card, stage
from .cli import UserError, hide_bars

# names that only this project gives; nothing else is deleted
OURS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(custom_generate/)?\w+_vift\.py")
HUB_ERRORS = (HfHubHTTPError, httpx.HTTPError, RuntimeError, OSError, ValueError)


def explain(error: Exception, repo_id: str) -> str:
    """One line for what a Hub answered."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    reason = {
        401: f"the Hub does not accept this token (HF_TOKEN, or `hf auth login`), or {repo_id} is hidden from it",
        403: f"this token has no permission to write to {repo_id}",
        404: f"{repo_id} was not found",
        412: f"{repo_id} was changed by someone else in the meantime: look at it, and try again",
    }.get(status)
    message = getattr(error, "server_message", None) or f"{error} ({type(error.__cause__ or error).__name__})"
    return reason or " ".join(message.split())[:300]


def add_all(folder: Path) -> dict[str, CommitOperationAdd]:
    """Path in the repository -> upload."""
    files = {file.relative_to(folder): str(file) for file in sorted(folder.rglob("*")) if file.is_file()}
    files = {name.as_posix(): file for name, file in files.items() if not {"__pycache__", ".git"} & set(name.parts)}
    return {name: CommitOperationAdd(name, file) for name, file in files.items()}


def look(api: HfApi, repo_id: str, repo_type="model", revision="main", update=False):
    """
    (head, files, README.md or None) of a branch; (None, nothing, None) where the repository does not exist.

    Raises:
        UserError: it holds files and `update` is not given, or there is no such branch.
    """
    if not api.repo_exists(repo_id, repo_type=repo_type):
        if revision != "main":
            raise UserError(f"revision={revision}: {repo_id} does not exist yet, its first commit goes to main")
        return None, set(), None
    heads = {one.name: one.target_commit for one in api.list_repo_refs(repo_id, repo_type=repo_type).branches}
    if revision not in heads:
        raise UserError(f"revision={revision} is no branch of {repo_id}; it has {', '.join(sorted(heads))}")
    place = {"repo_type": repo_type, "revision": heads[revision]}
    there = set(api.list_repo_files(repo_id, **place)) - {".gitattributes"}
    if there and not update:
        raise UserError(f"{repo_id} exists and holds {len(there)} files: pass --update to add a commit to it")
    if "README.md" not in there:
        return heads[revision], there, None
    url = f"{api.endpoint}/{'spaces/' * (repo_type == 'space')}{repo_id}/resolve/{heads[revision]}/README.md"
    answer = get_session().get(url, headers=build_hf_headers(), follow_redirects=True)
    hf_raise_for_status(answer)
    return heads[revision], there, card.read(answer.content, f"README.md of {repo_id}")


def may_write(api: HfApi, repo_id: str) -> None:
    """Raises UserError where there is no token, or one that cannot write to `repo_id`."""
    if get_token() is None:
        raise UserError("no token: run `hf auth login`, or set HF_TOKEN to one that can write")
    user = api.whoami()
    read_only = user.get("auth", {}).get("accessToken", {}).get("role") == "read"
    if read_only or repo_id.split("/")[0] not in (user["name"], *(one["name"] for one in user.get("orgs", ()))):
        raise UserError(f"nothing was published: this token has no permission to write to {repo_id}")


def publish(api: HfApi, operations: list, repo_id: str, head: str | None, message: str, *, repo_type="model",
            revision="main", **create) -> str:  # fmt: skip
    """
    One commit; returns its id.

    Args:
        head: what the branch was when it was looked at (None: no repository, so one is made, with `create`).

    Raises:
        UserError: no permission, another commit since `head`, or the upload broke off. Then nothing is visible, and a
            repository that was made for it is gone again.
    """
    created = False
    try:
        if head is None:
            api.create_repo(repo_id, repo_type=repo_type, **create)
            created = True
        place = {"repo_type": repo_type, "revision": revision, "parent_commit": head}
        return api.create_commit(repo_id, operations, commit_message=message, **place).oid
    except BaseException as error:  # Ctrl-C, too
        print(file=sys.stderr)  # an upload's progress bar is left in the middle of its line
        undone = ""
        if created:
            try:
                api.delete_repo(repo_id, repo_type=repo_type, missing_ok=True)
                undone = f"; the new repository {repo_id} was removed again"
            except (HfHubHTTPError, httpx.HTTPError):
                undone = f"; the new, empty repository {repo_id} could not be removed"
        if isinstance(error, HUB_ERRORS):
            raise UserError(f"nothing was published: {explain(error, repo_id)}{undone}") from error
        raise


def space_card(folder: Path) -> RepoCard:
    """README.md of a Space, which names its `sdk:`."""
    file = folder / "README.md"
    page = card.read(file.read_bytes(), file) if file.is_file() else RepoCard("---\n{}\n---\n")
    if "sdk" not in page.data:
        raise UserError(f"space={folder} holds no README.md with a Space's header (sdk: gradio)")
    return page


def push(args: argparse.Namespace, done: list[str]) -> None:
    """`done` tells what was published when this breaks off."""
    validate_repo_id(args.repo_id)
    page = None if args.space is None else space_card(args.space)
    values = {name: card.section(name, getattr(args, name)) for name in card.NOT_GIVEN}
    scores, own = stage.score_files(args.source, args.eval_results), args.source / "README.md"
    cards = {str(own): card.read(own.read_bytes(), own)} if own.is_file() else {}
    api, seen = HfApi(), dict.fromkeys(("model", "space")[: 1 + bool(page)], (None, set(), None))
    with tempfile.TemporaryDirectory() as scratch:
        if not args.dry_run:
            may_write(api, args.repo_id)
        if args.update or not args.dry_run:
            for kind, revision in zip(seen, (args.revision, "main")):
                seen[kind] = look(api, args.repo_id, kind, revision, args.update)
        head, there, theirs = seen["model"]
        gone = []
        if theirs:  # its scores are of the weights that are replaced
            data = theirs.data.to_dict()
            gone, theirs.data = card.without_scores_of_ours(data), CardData(**data)
            cards[f"README.md of {args.repo_id}"] = theirs
        model, processor = stage.load(args.source)
        values |= {"repo_id": args.repo_id, "facts": card.facts(model)}
        folder = Path(scratch) / "staged" / args.repo_id.split("/")[-1]

        def readme(revision: str) -> tuple[RepoCard, list[str]]:
            return card.renew(RepoCard(card.fill(values | {"revision": revision})), cards)

        try:
            stage.write(folder, model, processor, values | {"revision": args.revision}, scores, args.max_shard_size)
            text, notes = readme(args.revision)
            text.save(folder / "README.md")
        except (OSError, SafetensorError) as error:
            where = f"{scratch} ({shutil.disk_usage(scratch).free:,d} bytes free; TMPDIR names another place)"
            raise UserError(f"nothing was published: staging in {where}: {error}") from error
        stage.check(folder, model, processor)
        print(f"loads back: {folder.name} gives the same logits and answers in a fresh process without this package")
        mine = {file.name for file in args.source.iterdir() if not file.name.startswith(".")}
        notes += [f"left out, a score of other weights: {name}" for name in gone]
        ours = {f".eval_results/{file.name}" for file in scores}
        for path in sorted(one for one in there - ours if one.startswith(".eval_results/")):
            notes.append(f"{path} of {args.repo_id} stays: delete it if other weights gave that score")
        if left := sorted(mine - {path.name for path in folder.iterdir()}):
            notes.append(f"of {args.source} these are not published: {', '.join(left)}")
        uploads = {"model": add_all(folder)} | ({"space": add_all(args.space)} if page else {})
        deleted = sorted(path for path in there - set(uploads["model"]) if OURS.fullmatch(path))
        notes += [f"{'deletes' if args.dry_run else 'deleting':>14s}  {path}" for path in deleted]
        print(*(f"{note}\n" for note in notes), sep="", end="")
        if page and (old := seen["space"][2]):  # settings that people made on the Hub stay, the text is the folder's
            page.data = CardData(**card.merge(old.data.to_dict(), page.data.to_dict()))
            uploads["space"]["README.md"] = CommitOperationAdd("README.md", str(page).encode())
        if args.dry_run:
            for kind, files in uploads.items():
                for path, one in files.items():
                    about = " (Space)" * (kind == "space") + " (replaces)" * (path in seen[kind][1])
                    print(f"{one.upload_info.size:>14,d}  {path}{about}")
            total = sum(one.upload_info.size for one in uploads["model"].values())
            print(f"{total:>14,d}  bytes in {len(uploads['model'])} files would be uploaded to {args.repo_id}")
            return
        operations = [*uploads["model"].values(), *map(CommitOperationDelete, deleted)]
        options = {"revision": args.revision, "private": args.private}
        commit = publish(api, operations, args.repo_id, head, "Publish the model", **options)
        done.append(f"published {args.repo_id}, revision {commit}")
        print(done[-1])
        try:
            operation = CommitOperationAdd("README.md", str(readme(commit)[0]).encode())
            place = {"revision": args.revision, "parent_commit": commit}
            api.create_commit(args.repo_id, [operation], commit_message="Pin the card's snippets to a commit", **place)
        except HUB_ERRORS as error:
            unpinned = f"published, but the card's snippets name {args.revision} instead of the commit"
            raise UserError(f"{unpinned}: {explain(error, args.repo_id)}") from error
        if page:
            options = {"repo_type": "space", "private": args.private, "space_sdk": page.data["sdk"]}
            place = (args.repo_id, seen["space"][0], "Publish the Space")
            try:
                commit = publish(api, [*uploads["space"].values()], *place, **options)
            except UserError as error:
                raise UserError(f"the model is published, its Space is not: {error}") from error
            print(f"published the Space {args.repo_id}, revision {commit}")


def stop(number, frame):
    raise KeyboardInterrupt(number)


def publish_folder(args: argparse.Namespace) -> None:
    """
    `push`, whose faults are one line.

    Args:
        args: the options of `vift push`.

    Raises:
        ValueError: nothing was published, or what was.
        SystemExit: it was stopped.
    """
    done: list[str] = []
    for name in ("SIGTERM", "SIGHUP"):  # clean up as after Ctrl-C; nohup ignores the second, and so it stays
        if (number := getattr(signal, name, None)) and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    hide_bars()
    try:
        push(args, done)
    except (HfHubHTTPError, httpx.HTTPError) as error:
        raise UserError(f"nothing was published: {explain(error, args.repo_id)}") from error
    except KeyboardInterrupt as stopped:
        print(f"vift push: interrupted; {done[0] if done else 'nothing was published'}", file=sys.stderr)
        raise SystemExit(128 + (stopped.args[0] if stopped.args else signal.SIGINT)) from None
    if args.dry_run:
        print("nothing was uploaded; the same command without --dry-run publishes it")
    else:
        print(f"next: look at {constants.ENDPOINT}/{args.repo_id}")
