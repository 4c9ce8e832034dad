"""Publish a VIFT on the Hub: one complete commit, made only if the folder loads back.

    vift-push runs/stage2 org/vift-7b --dry-run                 # lists what would be uploaded; no network
    vift-push runs/stage2 org/vift-7b --training-data data.md --evaluation results.md --eval-results scores.yaml
    vift-push runs/stage3 org/vift-7b --update                  # a new commit to a repository that exists
    vift-push runs/stage2 org/vift-7b --space space             # and the demonstration, as a Space of the same name

Weights (safetensors, sharded), config, code, `custom_generate/`, processor, chat template, generation config, model
card and `.eval_results/` go up in one commit: a run that breaks off publishes nothing, and removes the repository that
it made. A second commit pins the card's snippets to the first. The token is the one of `hf auth login`, or HF_TOKEN.
What the source's README.md and `.eval_results/` hold (`vift-card`) is published, what the repository's hold is kept.
"""

import argparse
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, httpx, validate_repo_id
from safetensors import SafetensorError

from . import card, stage

# what this command writes under names that change from version to version: deleted where nothing has taken its place
OURS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(custom_generate/)?\w+_vift\.py")
HUB_ERRORS = (HfHubHTTPError, httpx.HTTPError, RuntimeError, OSError, ValueError)


class PushError(Exception):
    """What the user can put right; shown as one line, exit status 2."""


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


def add_all(folder: Path) -> list[CommitOperationAdd]:
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return [CommitOperationAdd(file.relative_to(folder).as_posix(), str(file)) for file in files]


def look(api: HfApi, repo_id: str, repo_type="model", revision="main", update=False) -> tuple[str | None, set[str]]:
    """
    (head, files) of a branch; (None, nothing) where the repository does not exist.

    Raises:
        PushError: it holds files and `update` is not given, or there is no such branch.
    """
    if not api.repo_exists(repo_id, repo_type=repo_type):
        if revision != "main":
            raise PushError(f"revision={revision}: {repo_id} does not exist yet, its first commit goes to main")
        return None, set()
    heads = {one.name: one.target_commit for one in api.list_repo_refs(repo_id, repo_type=repo_type).branches}
    if revision not in heads:
        raise PushError(f"revision={revision} is no branch of {repo_id}; it has {', '.join(sorted(heads))}")
    there = set(api.list_repo_files(repo_id, repo_type=repo_type, revision=heads[revision])) - {".gitattributes"}
    if there and not update:
        raise PushError(f"{repo_id} exists and holds {len(there)} files: pass --update to add a commit to it")
    return heads[revision], there


def may_write(api: HfApi, repo_id: str) -> None:
    """Raises PushError where there is no token, or one that cannot write to `repo_id`."""
    if get_token() is None:
        raise PushError("no token: run `hf auth login`, or set HF_TOKEN to one that can write")
    try:
        user = api.whoami()
    except HUB_ERRORS as error:
        raise PushError(f"nothing was published: {explain(error, repo_id)}") from error
    read_only = user.get("auth", {}).get("accessToken", {}).get("role") == "read"
    if read_only or repo_id.split("/")[0] not in (user["name"], *(one["name"] for one in user.get("orgs", ()))):
        raise PushError(f"nothing was published: this token has no permission to write to {repo_id}")


def merged(api: HfApi, generated: str, source: Path, repo_id: str, head: str | None, there: set[str],
           prefix="") -> tuple[str, list[str]]:  # fmt: skip
    """`card.merge` of `generated` with the README.md of the repository at `head` and with `source`."""
    cards = {}
    if "README.md" in there:
        url = f"{api.endpoint}/{prefix}{repo_id}/resolve/{head}/README.md"
        answer = get_session().get(url, headers=build_hf_headers(), follow_redirects=True)
        hf_raise_for_status(answer)
        cards[f"README.md of {repo_id}"] = answer.content.decode()
    if source.is_file():
        cards[str(source)] = source.read_text(encoding="utf-8")
    return card.merge(generated, cards)


def publish(api: HfApi, folder: Path, repo_id: str, *, repo_type="model", revision="main", update=False,
            private=False, message="Publish", head=None, **create) -> str:  # fmt: skip
    """
    `folder` as one commit; returns its id.

    Args:
        head: what the repository was when it was looked at; a commit since is a PushError.

    Raises:
        PushError: the repository holds files and `update` is not given, there is no such branch, no permission, or
            the upload broke off. Then nothing is visible, and a repository that was made for it is gone again.
    """
    created = False
    try:
        if head is None and not api.repo_exists(repo_id, repo_type=repo_type):
            api.create_repo(repo_id, repo_type=repo_type, private=private, **create)
            created = True
        now, there = look(api, repo_id, repo_type, revision, update)
        operations = add_all(folder)
        operations += [CommitOperationDelete(path) for path in stale(folder, there, repo_type)]
        place = {"repo_type": repo_type, "revision": revision, "parent_commit": head or now}
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
            raise PushError(f"nothing was published: {explain(error, repo_id)}{undone}") from error
        raise


def stale(folder: Path, there: set[str], repo_type: str = "model") -> list[str]:
    """Files of the repository that an earlier push wrote and `folder` has no successor of; of a Space, none."""
    kept = {operation.path_in_repo for operation in add_all(folder)}
    return sorted(path for path in there - kept if repo_type == "model" and OURS.fullmatch(path))


def space_sdk(folder: Path) -> str:
    """The `sdk:` of the header of a Space's README.md."""
    file = folder / "README.md"
    parts = file.read_text(encoding="utf-8").split("---") if file.is_file() else []
    header = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    if not isinstance(header, dict) or "sdk" not in header:
        raise PushError(f"space={folder} holds no README.md with a Space's header (sdk: gradio)")
    return header["sdk"]


def push(args: argparse.Namespace, done: list[str]) -> None:
    """`done` tells what was published when this breaks off."""
    validate_repo_id(args.repo_id)
    sdk = None if args.space is None else space_sdk(args.space)
    names = ("training_data", "evaluation", "limits")
    values = {name: card.section(name, getattr(args, name)) for name in names}
    scores, own_card = stage.score_files(args.source, args.eval_results), args.source / "README.md"
    if own_card.is_file():
        card.parse(own_card.read_text(encoding="utf-8"), str(own_card))  # its mistakes before the minutes of staging
    api, kinds = HfApi(), ["model"] if args.space is None else ["model", "space"]
    seen = dict.fromkeys(kinds, (None, set()))
    if not args.dry_run:
        may_write(api, args.repo_id)
    if args.update or not args.dry_run:
        try:
            for kind in kinds:
                revision = args.revision if kind == "model" else "main"
                seen[kind] = look(api, args.repo_id, kind, revision, args.update)
        except HUB_ERRORS as error:
            raise PushError(f"nothing was published: {explain(error, args.repo_id)}") from error
    model, processor = stage.load(args.source)
    values |= {"repo_id": args.repo_id, "revision": args.revision, "facts": card.facts(model)}
    with tempfile.TemporaryDirectory() as scratch:
        folder, space = Path(scratch) / args.repo_id.split("/")[-1], Path(scratch) / "a space"
        try:
            stage.write(folder, model, processor, values, scores, args.max_shard_size)
            if args.space is not None:
                shutil.copytree(args.space, space, ignore=shutil.ignore_patterns("__pycache__"))
        except (OSError, SafetensorError) as error:
            where = f"{scratch} ({shutil.disk_usage(scratch).free:,d} bytes free; TMPDIR names another place)"
            raise PushError(f"nothing was published: staging in {where}: {error}") from error
        stage.check(folder, model, processor)
        print(f"loads back: {folder.name} gives the same logits and answers in a fresh process without this package")

        def write_card(revision: str) -> tuple[str, list[str]]:
            generated = card.fill(values | {"revision": revision})
            return merged(api, generated, own_card, args.repo_id, *seen["model"])

        try:
            text, notes = write_card(args.revision)
            (folder / "README.md").write_text(text, encoding="utf-8")
            if args.space is not None and "README.md" in seen["space"][1]:
                theirs = merged(api, "", space / "README.md", args.repo_id, *seen["space"], prefix="spaces/")
                (space / "README.md").write_text(theirs[0], encoding="utf-8")
        except HUB_ERRORS as error:
            raise PushError(f"nothing was published: {explain(error, args.repo_id)}") from error
        staged = {"model": folder, "space": space}
        for note in notes:
            print(note)
        mine = {file.name for file in args.source.iterdir() if not file.name.startswith(".")}
        if left := sorted(mine - {path.name for path in folder.iterdir()}):
            print(f"of {args.source} these are not published: {', '.join(left)}")
        for kind in kinds:
            for path in stale(staged[kind], seen[kind][1], kind):
                print(f"{'deletes' if args.dry_run else 'deleting':>14s}  {path}")
        if args.dry_run:
            files = add_all(folder)
            for operation in files:
                print(f"{operation.upload_info.size:>14,d}  {operation.path_in_repo}")
            total = sum(operation.upload_info.size for operation in files)
            print(f"{total:>14,d}  bytes in {len(files)} files would be uploaded to {args.repo_id}")
            for operation in add_all(space) if args.space else ():
                print(f"{operation.upload_info.size:>14,d}  {operation.path_in_repo} (Space)")
            return
        options = {"update": args.update, "private": args.private}
        model_options = options | {"revision": args.revision, "head": seen["model"][0]}
        commit = publish(api, folder, args.repo_id, message="Publish the model", **model_options)
        done.append(f"published {args.repo_id}, revision {commit}")
        print(done[-1])
        try:
            message = "Pin the card's snippets to a commit"
            operation = CommitOperationAdd("README.md", write_card(commit)[0].encode())
            place = {"revision": args.revision, "parent_commit": commit}
            api.create_commit(args.repo_id, [operation], commit_message=message, **place)
        except HUB_ERRORS as error:
            unpinned = f"published, but the card's snippets name {args.revision} instead of the commit"
            raise PushError(f"{unpinned}: {explain(error, args.repo_id)}") from error
        if args.space is not None:
            options |= {"repo_type": "space", "head": seen["space"][0], "space_sdk": sdk}
            try:
                commit = publish(api, space, args.repo_id, message="Publish the Space", **options)
            except PushError as error:
                raise PushError(f"the model is published, its Space is not: {error}") from error
            print(f"published the Space {args.repo_id}, revision {commit}")


def stop(number, frame):
    raise KeyboardInterrupt(number)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="vift-push", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of a VIFT")
    parser.add_argument("repo_id", help="where it goes: user/name or org/name")
    parser.add_argument("--dry-run", action="store_true", help="build and check, list the files, upload nothing")
    parser.add_argument("--update", action="store_true", help="add a commit to a repository that holds files")
    parser.add_argument("--revision", default="main", help="branch (default main)")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--training-data", type=Path, help="Markdown for the card: what it was trained on")
    parser.add_argument("--evaluation", type=Path, help="Markdown for the card: numbers with their commands")
    parser.add_argument("--limits", type=Path, help="Markdown for the card: limits of this model")
    parser.add_argument("--eval-results", type=Path, help="YAML for .eval_results/, in the Hub's format")
    parser.add_argument("--space", type=Path, help="folder of a Gradio demonstration, published as a Space")
    parser.add_argument("--max-shard-size", default="5GB", help="largest weights file (default 5GB)")
    args = parser.parse_args(argv)
    done: list[str] = []
    for name in ("SIGTERM", "SIGHUP"):  # clean up as after Ctrl-C; nohup ignores the second, and so it stays
        if (number := getattr(signal, name, None)) and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)
    try:
        push(args, done)
    except (PushError, HFValidationError, ValueError, OSError) as error:
        parser.exit(2, f"vift-push: error: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt as stopped:
        status = 128 + (stopped.args[0] if stopped.args else signal.SIGINT)
        parser.exit(status, f"vift-push: interrupted; {done[0] if done else 'nothing was published'}\n")


if __name__ == "__main__":
    main()
