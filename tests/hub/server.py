"""A Hub on localhost, in memory: just the endpoints that `vift push` and loading call.

Repositories are lists of commits, a commit a dict path -> bytes. Large files go through the Git LFS batch protocol, as
on the Hub without Xet. A test breaks things by setting `refuse_commits`, `break_uploads`, `stall_uploads` or `race`.
"""

import base64
import fnmatch
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = ("*.safetensors", "*.bin", "*.png")


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.tokens = {"hf_writer": ("writer", ["org"]), "hf_reader": ("reader", [])}  # token -> user, organizations
        self.repos, self.blobs, self.log = {}, {}, []
        self.refuse_commits, self.break_uploads, self.stall_uploads, self.race = None, False, False, False
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, repo_id, revision="main", repo_type="model"):
        """path -> bytes, or None where there is no such repository."""
        repo = self.repos.get((repo_type, repo_id))
        return repo and repo.files(revision)

    def put(self, repo_id, files: dict[str, bytes]):
        """A repository filled behind the API's back."""
        self.repos.setdefault(("model", repo_id), Repo(repo_id)).commit("main", files)


class Repo:
    def __init__(self, repo_id):
        self.repo_id, self.commits, self.branches = repo_id, {}, {}
        self.commit("main", {".gitattributes": b""})

    def commit(self, branch, files):
        oid = hashlib.sha1(f"{self.repo_id}{len(self.commits)}{time.time()}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def resolve(self, revision):
        revision = self.branches.get(revision, revision)
        return revision if revision in self.commits else None

    def files(self, revision):
        return self.commits[self.resolve(revision)]


class Refused(Exception):
    pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, message, code=None):
        self.answer(status, {"error": message}, **({"X_Error_Code": code} if code else {}))
        raise Refused

    def body(self):
        if self.unread is None:
            self.unread = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return self.unread

    def user(self):
        """(name, organizations); a wrong token is a 401."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given not in self.server.tokens:
            self.refuse(401, "Invalid user token.")
        return self.server.tokens[given]

    def writer(self, repo_id):
        name, organizations = self.user()
        if repo_id.split("/")[0] not in (name, *organizations):
            self.refuse(403, "You don't have the rights to write to this repository.")

    def repo(self, kind, repo_id) -> Repo:
        repo = self.server.repos.get((kind, repo_id))
        if repo is None:
            self.refuse(401 if "Authorization" not in self.headers else 404, "Not found", "RepoNotFound")
        return repo

    def revision(self, repo, revision):
        oid = repo.resolve(unquote(revision))
        if oid is None:
            self.refuse(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return oid

    def handle_all(self):
        url, self.unread = urlsplit(self.path), None
        if self.command != "PUT":
            self.body()  # always: what is left unread would be taken for the next request
        self.server.log.append(f"{self.command} {url.path}")
        try:
            for pattern, function in ROUTES:
                method, path = pattern.split(" ")
                if self.command in method.split("|") and (match := re.fullmatch(path, url.path)):
                    return function(self, *match.groups(), **{k: v[0] for k, v in parse_qs(url.query).items()})
            self.refuse(404, f"this Hub does not know {self.command} {url.path}")
        except Refused:
            pass

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_all

    def whoami(self):
        name, organizations = self.user()
        self.answer(200, {"name": name, "type": "user", "orgs": [{"name": o} for o in organizations], "auth": {}})

    def create(self):
        body = json.loads(self.body())
        repo_id = f"{body.get('organization') or self.user()[0]}/{body['name']}"
        self.writer(repo_id)
        key = (body.get("type", "model"), repo_id)
        if key in self.server.repos:
            self.refuse(409, "You already created this repo")
        self.server.repos[key] = Repo(repo_id)
        self.answer(200, {"url": f"{self.server.url}/{repo_id}", "name": repo_id, "id": repo_id})

    def delete(self):
        body = json.loads(self.body())
        repo_id = f"{body.get('organization') or self.user()[0]}/{body['name']}"
        self.writer(repo_id)
        self.repo(body.get("type", "model"), repo_id)
        del self.server.repos[body.get("type", "model"), repo_id]
        self.answer(200, {})

    def info(self, kind, repo_id, revision="main", **query):
        repo = self.repo(kind, repo_id)
        oid = self.revision(repo, revision or "main")
        siblings = [{"rfilename": path, "size": len(data)} for path, data in sorted(repo.commits[oid].items())]
        fields = {"id": repo_id, "modelId": repo_id, "sha": oid, "siblings": siblings, "private": False, "tags": []}
        self.answer(200, fields)

    def refs(self, kind, repo_id, **query):
        branches = self.repo(kind, repo_id).branches.items()
        heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in branches]
        self.answer(200, {"branches": heads, "converts": [], "tags": []})

    def tree(self, kind, repo_id, revision, path=None, **query):
        repo = self.repo(kind, repo_id)
        files = repo.commits[self.revision(repo, revision)]
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in sorted(files.items())
            if name.startswith((path or "").strip("/"))
        ]
        self.answer(200, entries)

    def preupload(self, kind, repo_id, revision, **query):
        self.writer(repo_id)
        self.revision(self.repo(kind, repo_id), revision)
        if self.server.race:  # someone else's commit between our look and our commit
            self.repo(kind, repo_id).commit("main", self.repo(kind, repo_id).files("main") | {"other.txt": b"theirs"})
        answer = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if any(fnmatch.fnmatch(file["path"], large) for large in LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(self.body())["files"]
        ]
        self.answer(200, {"files": answer})

    def lfs_batch(self, repo_id):
        self.writer(repo_id.removeprefix("spaces/"))
        objects = json.loads(self.body())["objects"]
        for one in objects:
            if one["oid"] not in self.server.blobs:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if self.server.stall_uploads:
            threading.Event().wait(60)
        if self.server.break_uploads:
            self.rfile.read(min(1000, int(self.headers["Content-Length"])))
            self.close_connection = True
            return self.connection.close()
        data = self.body()
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.blobs[oid] = data
        self.answer(200)

    def commit(self, kind, repo_id, revision, **query):
        lines = [json.loads(line) for line in self.body().splitlines()]
        self.writer(repo_id)
        repo = self.repo(kind, repo_id)
        with self.server.lock:
            if self.server.refuse_commits:
                self.refuse(*self.server.refuse_commits)
            head = self.revision(repo, revision)
            if lines[0]["value"].get("parentCommit", head) != head:
                self.refuse(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[head])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.blobs[value["oid"]]
                else:
                    del files[value["path"]]
            oid = repo.commit(unquote(revision), files)
        self.answer(200, {"commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}", "commitOid": oid})

    def validate_yaml(self):
        self.answer(200, {"errors": [], "warnings": []})

    def resolve(self, repo_id, revision, path):
        kind = "space" if repo_id.startswith("spaces/") else "model"
        repo = self.repo(kind, repo_id.removeprefix("spaces/"))
        oid = self.revision(repo, revision)
        data = repo.commits[oid].get(unquote(path))
        if data is None:
            self.refuse(404, f"{path} does not exist", "EntryNotFound")
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        self.answer(200, data, ETag=etag, X_Repo_Commit=oid, X_Linked_Size=str(len(data)))


KIND, ID, REV = "/api/(model|space)s", "([^/]+/[^/]+)", "([^/]+)"
ROUTES = [
    ("GET /api/whoami-v2", Handler.whoami),
    ("POST /api/repos/create", Handler.create),
    ("DELETE /api/repos/delete", Handler.delete),
    ("POST /api/validate-yaml", Handler.validate_yaml),
    (f"GET {KIND}/{ID}", Handler.info),
    (f"GET {KIND}/{ID}/revision/{REV}", Handler.info),
    (f"GET {KIND}/{ID}/refs", Handler.refs),
    (f"GET {KIND}/{ID}/tree/{REV}(/.*)?", Handler.tree),
    (f"POST {KIND}/{ID}/preupload/{REV}", Handler.preupload),
    (f"POST {KIND}/{ID}/commit/{REV}", Handler.commit),
    (r"POST /((?:spaces/)?[^/]+/[^/]+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT /lfs/([0-9a-f]+)", Handler.lfs_put),
    (f"GET|HEAD /((?:spaces/)?[^/]+/[^/]+)/resolve/{REV}/(.+)", Handler.resolve),
]


def start() -> Hub:
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    return hub
