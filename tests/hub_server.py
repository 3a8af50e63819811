"""A small stand-in for the Hugging Face Hub on 127.0.0.1, for the real `huggingface_hub` client.

It keeps repositories with their commits, branches and tags in memory and is strict: unknown routes, malformed bodies,
unknown tokens, missing repositories, revisions and entries get the status and the `X-Error-Code` of the real Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Self
from urllib.parse import unquote, urlsplit

import yaml

ID = r"(?P<repo>[\w.-]+/[\w.-]+)"
REVISION = r"(?P<revision>[^/]+|refs/pr/\d+)"
Route = tuple[str, str, str]
FRONT_MATTER = re.compile(r"\A---\n(.*?)\n---(?:\n|\Z)", re.DOTALL)


@dataclass
class Commit:
    """One commit: the whole tree, as paths and contents."""

    sha: str
    files: dict[str, bytes]
    message: str
    parent: str | None


@dataclass
class Repo:
    """A model repository; `refs` are branches, tags and pull requests."""

    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit | None:
        """Look up a branch, a tag or a commit."""
        return self.commits.get(self.refs.get(revision) or self.tags.get(revision) or revision)

    def commit(self, ref: str, files: dict[str, bytes], message: str) -> Commit:
        """Put a new commit on a branch."""
        parent = self.refs.get(ref)
        seed = f"{self.name} {ref} {parent} {message} {len(self.commits)}"
        commit = Commit(hashlib.sha1(seed.encode()).hexdigest(), files, message, parent)
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
        return commit


@dataclass
class Fault:
    """Something that goes wrong once, at the first request that matches."""

    method: str
    path: re.Pattern[str]
    status: int = 0
    cut: bool = False
    action: Callable[[], None] | None = None


class Refused(Exception):  # noqa: N818 - an answer, not a fault of ours
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


class Server(ThreadingHTTPServer):
    """A server on a free port of 127.0.0.1, running while its `with` block does."""

    daemon_threads = True

    def __init__(self, handler: type[StrictHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def fail(self, method: str, path: str, **fault: Any) -> None:
        """Let one coming request go wrong: `status=`, `cut=True` half-way through a body, or `action=` beforehand."""
        self.faults.append(Fault(method, re.compile(path), **fault))

    def take_fault(self, method: str, path: str) -> Fault:
        """Return what goes wrong with this request, and forget it."""
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.path.search(path):
                    self.faults.remove(fault)
                    return fault
        return Fault(method, re.compile(""))


class Storage(Server):
    """Where the Hub keeps large files: another origin, reached by links, without tokens."""

    def __init__(self) -> None:
        super().__init__(StorageHandler)
        self.blobs: dict[str, bytes] = {}


class HubServer(Server):
    """The stand-in; its `url` is what goes into `HF_ENDPOINT`."""

    def __init__(self, users: dict[str, str]) -> None:
        super().__init__(HubHandler)
        self.users = users
        self.repos: dict[str, Repo] = {}
        self.storage = Storage()

    def __enter__(self) -> Self:
        self.storage.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.storage.__exit__(*error)

    def create(self, name: str, private: bool = False) -> Repo:
        """Make a repository with its first commit, as the Hub does."""
        repo = self.repos[name] = Repo(name, private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs -text\n"}, "initial commit")
        return repo


class StrictHandler(BaseHTTPRequestHandler):
    """Reads a request whole, lets it go wrong if asked to, and answers by the first route that fits."""

    protocol_version = "HTTP/1.1"
    server: Any
    routes: ClassVar[list[Route]]

    def handle_method(self) -> None:
        """Answer one request."""
        url = urlsplit(self.path)
        self.server.requests.append(f"{self.command} {url.path}")
        fault = self.server.take_fault(self.command, url.path)
        length = int(self.headers.get("Content-Length", 0))
        self.cut = fault.cut
        if fault.cut and length:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        if fault.action:
            fault.action()
        try:
            if fault.status:
                raise Refused(fault.status, HTTPStatus(fault.status).phrase)
            self.dispatch("GET" if self.command == "HEAD" else self.command, url.path)
        except Refused as refusal:
            self.refuse(refusal)

    do_GET = do_HEAD = do_POST = do_PUT = handle_method  # noqa: N815 - names of http.server

    def dispatch(self, method: str, path: str) -> None:
        """Call the route of a path, with the parts of the path unquoted."""
        for verb, pattern, name in self.routes:
            match = re.fullmatch(pattern, path)
            if verb == method and match:
                parts = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                with self.server.lock:
                    return getattr(self, name)(**parts)
        self.server.unknown.append(f"{self.command} {path}")
        raise Refused(501, f"the stand-in does not know {method} {path}")

    def reply(self, record: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.send(status, json.dumps(record).encode(), {"Content-Type": "application/json"})

    def refuse(self, refusal: Refused) -> None:
        """Answer with an error, as the Hub words it: two headers and a JSON body."""
        headers = {"Content-Type": "application/json", "X-Error-Message": refusal.message, **refusal.headers}
        if refusal.code:
            headers["X-Error-Code"] = refusal.code
        body = {"error": refusal.message, "errors": [{"message": refusal.message}]}
        self.send(refusal.status, json.dumps(body).encode(), headers)

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send an answer; without the body for HEAD, and half of it if the connection is to break."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if self.cut else body)
        self.close_connection = self.close_connection or self.cut

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


class StorageHandler(StrictHandler):
    """Puts and gets large files; like a signed link it refuses a token."""

    routes: ClassVar[list[Route]] = [
        ("PUT", r"/(?P<oid>[0-9a-f]{64})", "upload"),
        ("GET", r"/(?P<oid>[0-9a-f]{64})", "download"),
    ]

    def dispatch(self, method: str, path: str) -> None:
        """Answer a request that shows no token."""
        if "Authorization" in self.headers:
            raise Refused(400, "Only one auth mechanism allowed")
        super().dispatch(method, path)

    def upload(self, oid: str) -> None:
        """Keep a file whose content is what its id says."""
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "the content does not match its oid")
        self.server.blobs[oid] = self.body
        self.send(200, b"", {})

    def download(self, oid: str) -> None:
        """Give a file, whole or from an offset."""
        body = self.server.blobs[oid]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is None:
            return self.send(200, body, {"ETag": f'"{oid}"'})
        first = int(start[1])
        if first >= len(body):
            raise Refused(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{len(body)}"})
        self.send(206, body[first:], {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"})


class HubHandler(StrictHandler):
    """The Hub's own routes."""

    routes: ClassVar[list[Route]] = [
        ("GET", "/api/agent-harnesses", "nothing"),
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/repos/create", "create_repo"),
        ("POST", "/api/validate-yaml", "validate_yaml"),
        ("GET", f"/api/models/{ID}", "info"),
        ("GET", f"/api/models/{ID}/revision/{REVISION}", "info"),
        ("GET", f"/api/models/{ID}/tree/{REVISION}(?:/(?P<folder>.+))?", "tree"),
        ("POST", f"/api/models/{ID}/branch/(?P<name>[^/]+)", "create_branch"),
        ("POST", f"/api/models/{ID}/tag/{REVISION}", "create_tag"),
        ("POST", f"/api/models/{ID}/preupload/{REVISION}", "preupload"),
        ("POST", f"/api/models/{ID}/commit/{REVISION}", "push_commit"),
        ("POST", rf"/{ID}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("GET", f"/{ID}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
    ]

    def dispatch(self, method: str, path: str) -> None:
        """Answer a request of a known user or of nobody."""
        self.user = self.authenticate()
        super().dispatch(method, path)

    def authenticate(self) -> str | None:
        """Return the user that the token belongs to, `None` without one."""
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.server.users.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def repo(self, name: str, write: bool = False) -> Repo:
        """Return a repository that the user may see, or change."""
        repo = self.server.repos.get(name)
        owner = name.split("/")[0]
        if repo is None or (repo.private and self.user != owner):
            raise Refused(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and self.user != owner:
            raise Refused(403 if self.user else 401, f"Forbidden: you must use a write token of {owner}.")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        """Return the commit of a revision."""
        commit = repo.find(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def json(self) -> Any:
        """Return the JSON body."""
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise Refused(400, f"the body is not valid JSON: {error}") from error

    def nothing(self) -> None:
        """GET agent-harnesses, which newer clients ask for to fill in their user agent."""
        raise Refused(404, "Not found")

    def whoami(self) -> None:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        self.reply({"name": self.user, "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    def create_repo(self) -> None:
        record = self.json()
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        owner = record.get("organization") or self.user
        if owner != self.user:
            raise Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{owner}/{record['name']}"
        answer = {"url": f"{self.server.url}/{name}", "name": name, "id": name}
        if name in self.server.repos:
            return self.reply({**answer, "error": "You already created this model repo"}, 409)
        self.server.create(name, private=record.get("visibility") == "private" or record.get("private", False))
        self.reply(answer)

    def validate_yaml(self) -> None:
        check_card(self.json()["content"])
        self.reply({"warnings": []})

    def info(self, repo: str, revision: str = "main") -> None:
        found = self.repo(repo)
        commit = self.commit_of(found, revision)
        card = check_card(commit.files.get("README.md", b"").decode())
        answer = {"id": repo, "sha": commit.sha, "private": found.private, "tags": card.get("tags", [])}
        self.reply({**answer, "cardData": card, "siblings": [{"rfilename": path} for path in sorted(commit.files)]})

    def tree(self, repo: str, revision: str, folder: str = "") -> None:
        """GET models/ID/tree/REV/FOLDER, always recursive."""
        commit = self.commit_of(self.repo(repo), revision)
        inside = [path for path in sorted(commit.files) if not folder or path.startswith(f"{folder}/")]
        if not inside:
            raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        self.reply([entry(path, commit.files[path]) for path in inside])

    def create_branch(self, repo: str, name: str) -> None:
        found = self.repo(repo, write=True)
        if name in found.refs:
            raise Refused(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        found.refs[name] = self.commit_of(found, start).sha
        self.reply({})

    def create_tag(self, repo: str, revision: str) -> None:
        found = self.repo(repo, write=True)
        name = self.json()["tag"]
        if name in found.tags:
            raise Refused(409, f"Tag {name} already exists")
        found.tags[name] = self.commit_of(found, revision).sha
        self.reply({})

    def preupload(self, repo: str, revision: str) -> None:
        """POST models/ID/preupload/REV: safetensors go through LFS, everything else into the commit."""
        found = self.repo(repo, write="create_pr" not in self.path)
        commit = self.commit_of(found, revision)
        answer = []
        for file in self.json()["files"]:
            path, mode = file["path"], "lfs" if file["path"].endswith(".safetensors") else "regular"
            known = entry(path, commit.files[path]) if path in commit.files else {}
            oid = known["lfs"]["oid"] if "lfs" in known else known.get("oid")
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.reply({"files": answer})

    def lfs_batch(self, repo: str) -> None:
        self.repo(repo)
        objects = []
        for wanted in self.json()["objects"]:
            upload = {"upload": {"href": f"{self.server.storage.url}/{wanted['oid']}"}}
            objects.append({**wanted, **({} if wanted["oid"] in self.server.storage.blobs else {"actions": upload})})
        self.reply({"transfer": "basic", "objects": objects})

    def push_commit(self, repo: str, revision: str) -> None:
        """POST models/ID/commit/REV: all of it is checked before anything changes."""
        pull_request = "create_pr=1" in self.path
        found = self.repo(repo, write=not pull_request)
        before = self.commit_of(found, revision)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        if header["key"] != "header" or not header["value"]["summary"]:
            raise Refused(400, "the first line must be the header with a summary")
        if header["value"].get("parentCommit", before.sha) != before.sha:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(before.files)
        for operation in operations:
            self.apply(files, operation["key"], operation["value"])
        check_card(files.get("README.md", b"").decode())
        ref = f"refs/pr/{1 + sum('refs/pr/' in name for name in found.refs)}" if pull_request else revision
        if not pull_request and ref not in found.refs:
            raise Refused(400, f"{ref} is not a branch")
        commit = found.commit(ref, files, header["value"]["summary"])
        url = f"{self.server.url}/{repo}"
        pull_url = f"{url}/discussions/{ref.rpartition('/')[2]}" if pull_request else None
        self.reply({"commitOid": commit.sha, "commitUrl": f"{url}/commit/{commit.sha}", "pullRequestUrl": pull_url})

    def apply(self, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
        """Apply one line of a commit to a tree."""
        path = value["path"]
        if key == "file":
            files[path] = base64.b64decode(value["content"], validate=True)
        elif key == "lfsFile":
            if value["oid"] not in self.server.storage.blobs:
                raise Refused(400, f"{path} points to an LFS object that was not uploaded")
            files[path] = self.server.storage.blobs[value["oid"]]
        elif key == "deletedFile" and path in files:
            del files[path]
        elif key == "deletedFile":
            raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refused(400, f"unknown operation {key}")

    def resolve(self, repo: str, revision: str, path: str) -> None:
        """GET and HEAD ID/resolve/REV/PATH: small files directly, LFS files by a redirect to the storage."""
        commit = self.commit_of(self.repo(repo), revision)
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound", headers)
        content = commit.files[path]
        known = entry(path, content)
        if "lfs" not in known:
            return self.send(200, content, {**headers, "ETag": f'"{known["oid"]}"'})
        oid = known["lfs"]["oid"]
        self.server.storage.blobs.setdefault(oid, content)
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        self.send(302, b"", {**headers, **linked, "Location": f"{self.server.storage.url}/{oid}"})


def entry(path: str, content: bytes) -> dict[str, Any]:
    """Return what the Hub tells about a file: size, git's id, and for LFS files the SHA-256."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    record: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if path.endswith(".safetensors"):
        digest = hashlib.sha256(content).hexdigest()
        record["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return record


def check_card(content: str) -> dict[str, Any]:
    """Return a card's metadata, or refuse what the Hub refuses: broken YAML, or fields of the wrong form."""
    match = FRONT_MATTER.match(content)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        raise Refused(400, f"Invalid YAML: {error}".splitlines()[0]) from error
    data = {} if data is None else data
    tags = data.get("tags", [])
    checks = {
        "base_model": re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data.get("base_model", "a/b")),
        "license": re.fullmatch(r"[a-z0-9.+-]+", data.get("license", "mit")),
        "tags": isinstance(tags, list) and all(isinstance(tag, str) and len(tag) < 100 for tag in tags),
        "model-index": all(map(complete, data.get("model-index", []))),
    }
    for name, valid in checks.items():
        if not valid:
            raise Refused(400, f'"{name}" is not valid: {data[name]!r}')
    return data


def complete(model: dict[str, Any]) -> bool:
    """Whether an entry of model-index has everything the Hub wants."""
    return bool(model.get("name")) and all(
        result["task"].get("type")
        and {"type", "name"} <= set(result["dataset"])
        and all({"type", "value"} <= set(metric) for metric in result["metrics"])
        for result in model["results"]
    )
