"""Publish a VIFT on the Hub: one complete commit, made only if the folder loads back.

    vift-push runs/stage2 org/vift-7b --dry-run                 # lists what would be uploaded; no network
    vift-push runs/stage2 org/vift-7b --training-data data.md --evaluation results.md --eval-results scores.yaml
    vift-push runs/stage3 org/vift-7b --update                  # a new commit to a repository that exists
    vift-push runs/stage2 org/vift-7b --space space             # and the demonstration, as a Space of the same name

Weights (safetensors, sharded), config, code, `custom_generate/`, processor, chat template, generation config, model
card and `.eval_results/` go up in one commit: a run that breaks off publishes nothing, and removes the repository that
it made. A second commit pins the card's snippets to the first. The token is the one of `hf auth login`, or HF_TOKEN.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id

from . import card, stage

# what a commit replaces as a whole: a file of these that is no longer there is deleted
REPLACED = (".safetensors", ".safetensors.index.json", ".bin", ".py", ".jinja")


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


def publish(api: HfApi, folder: Path, repo_id: str, *, repo_type="model", revision="main", update=False,
            private=False, message="Publish", **create) -> str:  # fmt: skip
    """
    `folder` as one commit; returns its id.

    Raises:
        PushError: the repository holds files and `update` is not given, there is no such branch, no permission, or
            the upload broke off. Then nothing is visible, and a repository that was made for it is gone again.
    """
    created = False
    try:
        if not api.repo_exists(repo_id, repo_type=repo_type):
            if revision != "main":
                raise PushError(f"revision={revision}: {repo_id} does not exist yet, its first commit goes to main")
            api.create_repo(repo_id, repo_type=repo_type, private=private, **create)
            created = True
        refs = api.list_repo_refs(repo_id, repo_type=repo_type)
        heads = {branch.name: branch.target_commit for branch in refs.branches}
        if revision not in heads:
            raise PushError(f"revision={revision} is no branch of {repo_id}; it has {', '.join(sorted(heads))}")
        there = set(api.list_repo_files(repo_id, repo_type=repo_type, revision=revision)) - {".gitattributes"}
        if there and not update:
            raise PushError(f"{repo_id} exists and holds {len(there)} files: pass --update to add a commit to it")
        operations = add_all(folder)
        kept = {operation.path_in_repo for operation in operations}
        stale = sorted(path for path in there - kept if path.endswith(REPLACED))
        operations += [CommitOperationDelete(path) for path in stale]
        place = {"repo_type": repo_type, "revision": revision, "parent_commit": heads[revision]}
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
        if isinstance(error, HfHubHTTPError | httpx.HTTPError | RuntimeError | OSError | ValueError):
            raise PushError(f"nothing was published: {explain(error, repo_id)}{undone}") from error
        raise


def space_sdk(folder: Path) -> str:
    """The `sdk:` of the header of a Space's README.md."""
    file = folder / "README.md"
    parts = file.read_text(encoding="utf-8").split("---") if file.is_file() else []
    header = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    if not isinstance(header, dict) or "sdk" not in header:
        raise PushError(f"space={folder} holds no README.md with a Space's header (sdk: gradio)")
    return header["sdk"]


def push(args: argparse.Namespace) -> None:
    validate_repo_id(args.repo_id)
    sdk = None if args.space is None else space_sdk(args.space)
    model, processor = stage.load(args.source)
    names = ("training_data", "evaluation", "limits")
    values = {name: card.section(name, getattr(args, name)) for name in names}
    values |= {"repo_id": args.repo_id, "revision": args.revision, "facts": card.facts(model)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / args.repo_id.split("/")[-1]
        stage.write(folder, model, processor, values, args.eval_results, args.max_shard_size)
        stage.check(folder, model, processor)
        print(f"loads back: {folder.name} gives the same logits and answers in a fresh process without this package")
        files = add_all(folder)
        if args.dry_run:
            for operation in files:
                print(f"{operation.upload_info.size:>14,d}  {operation.path_in_repo}")
            total = sum(operation.upload_info.size for operation in files)
            print(f"{total:>14,d}  bytes in {len(files)} files would be uploaded to {args.repo_id}")
            for operation in add_all(args.space) if args.space else ():
                print(f"{operation.upload_info.size:>14,d}  {operation.path_in_repo} (Space)")
            return
        if get_token() is None:
            raise PushError("no token: run `hf auth login`, or set HF_TOKEN to one that can write")
        api = HfApi()
        try:
            api.whoami()
        except (HfHubHTTPError, httpx.HTTPError, LocalTokenNotFoundError) as error:
            raise PushError(f"nothing was published: {explain(error, args.repo_id)}") from error
        options = {"revision": args.revision, "update": args.update, "private": args.private}
        commit = publish(api, folder, args.repo_id, message="Publish the model", **options)
        print(f"published {args.repo_id}, revision {commit}")
        readme = card.fill(values | {"revision": commit}).encode()
        try:
            message, operation = "Pin the card's snippets to a commit", CommitOperationAdd("README.md", readme)
            api.create_commit(args.repo_id, [operation], commit_message=message, revision=args.revision)
        except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
            unpinned = f"published, but the card's snippets name {args.revision} instead of the commit"
            raise PushError(f"{unpinned}: {explain(error, args.repo_id)}") from error
    if args.space is not None:
        options = {"update": args.update, "private": args.private, "space_sdk": sdk}
        try:
            commit = publish(api, args.space, args.repo_id, repo_type="space", message="Publish the Space", **options)
        except PushError as error:
            raise PushError(f"the model is published, its Space is not: {error}") from error
        print(f"published the Space {args.repo_id}, revision {commit}")


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
    try:
        push(args)
    except (PushError, HFValidationError, ValueError) as error:
        parser.exit(2, f"vift-push: error: {' '.join(str(error).split())}\n")
    except KeyboardInterrupt:
        parser.exit(130, "vift-push: interrupted; nothing was published\n")


if __name__ == "__main__":
    main()
