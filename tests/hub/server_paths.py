"""The paths of the Hub for tests, and who may do what there: a request in, a reply out, without a socket."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

from tests.hub import validate_yaml
from tests.hub.server_repos import DATE, Commit, Conflict, Missing, Repository

NAME = r"([^/]+/[^/]+)"
OID = "([0-9a-f]{64})"


@dataclass
class Request:
    """One request, read whole."""

    method: str
    path: str
    query: dict[str, str]
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Reply(Exception):
    """An answer; raised where it ends the work on a request early."""

    status: int
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    """An error in the form that the client turns into its exceptions."""
    error_code = {"X-Error-Code": code} if code else {}
    return Reply(status, {"error": message}, {"X-Error-Message": message, **error_code, **headers})


class Paths:
    """What the Hub answers. `objects` are LFS uploads, kept apart until a commit names them."""

    url: str

    def __init__(self, part_size: int | None) -> None:
        self.part_size = part_size  # LFS files that are larger are uploaded in parts
        self.users: dict[str, str] = {}  # token -> user
        self.repos: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.lock = threading.RLock()
        self.routes = [(re.compile(pattern), handler) for pattern, handler in self._routes()]

    def route(self, request: Request) -> Reply:
        for pattern, handler in self.routes:
            if found := pattern.fullmatch(request.path):
                try:
                    with self.lock:
                        return handler(request, *found.groups())
                except Reply as reply:
                    return reply
        return refusal(404, "this Hub for tests does not have that path")

    # -- who may do what ------------------------------------------------------------------------------------------

    def user(self, request: Request, needed: bool = False) -> str | None:
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ").strip()
        if token and token not in self.users:
            raise refusal(401, "Invalid credentials in Authorization header")
        if needed and not token:
            raise refusal(401, "Invalid username or password.")
        return self.users.get(token)

    def repo(self, request: Request, name: str, write: bool = False) -> Repository:
        user, repo = self.user(request), self.repos.get(name)
        mine = name.split("/")[0] == user
        if repo is None or (repo.private and not mine):  # the Hub does not say which
            raise refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not mine:
            raise refusal(403, "You do not have the rights to write here")
        return repo

    def commit(self, repo: Repository, revision: str) -> Commit:
        commit = repo.find(unquote(revision))
        if commit is None:
            raise refusal(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit

    # -- the paths ------------------------------------------------------------------------------------------------

    def _routes(self) -> list[tuple[str, Any]]:
        model = f"/api/models/{NAME}"
        return [
            ("/api/whoami-v2", self.whoami),
            ("/api/validate-yaml", self.validate_yaml),
            ("/api/repos/create", self.create),
            ("/api/repos/delete", self.delete),
            (model, self.info),
            (f"{model}/revision/(.+)", self.info),
            (f"{model}/auth-check", lambda request, name: Reply(200, {"ok": bool(self.repo(request, name))})),
            (
                f"{model}/auth-check/write",
                lambda request, name: Reply(200, {"ok": bool(self.repo(request, name, True))}),
            ),
            (f"{model}/preupload/(.+)", self.preupload),
            (f"{model}/commit/(.+)", self.push),
            (f"{model}/tree/([^/]+)(?:/(.*))?", self.tree),
            (f"{model}/paths-info/(.+)", self.paths_info),
            (f"{model}/refs", lambda request, name: Reply(200, self.repo(request, name).refs())),
            (f"{model}/commits/(.+)", self.commits),
            (f"{model}/branch/(.+)", self.branch),
            (f"{model}/tag/(.+)", self.tag),
            (f"{model}/settings", self.settings),
            (f"{model}/discussions", lambda request, name: Reply(200, {"discussions": [], "count": 0, "start": 0})),
            (rf"/{NAME}\.git/info/lfs/objects/batch", self.batch),
            (f"/_lfs/{OID}", self.lfs),
            (rf"/_part/{OID}/(\d+)", self.part),
            (f"/_complete/{OID}", self.complete),
            (f"/_verify/{OID}", self.verify),
            (f"/{NAME}/(?:resolve|raw)/([^/]+)/(.+)", self.resolve),
        ]

    def whoami(self, request: Request) -> Reply:
        user = self.user(request, needed=True)
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
        return Reply(200, {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": token})

    def validate_yaml(self, request: Request) -> Reply:
        wrong = validate_yaml.errors(request.json["content"])
        return Reply(400 if wrong else 200, {"errors": [{"message": text} for text in wrong], "warnings": []})

    def create(self, request: Request) -> Reply:
        user, asked = self.user(request, needed=True), request.json
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if owner != user:
            raise refusal(403, f"You do not have the rights to create a model under the namespace {owner!r}")
        if name in self.repos:
            raise Reply(409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"})
        self.repos[name] = Repository(name, _private(asked))
        return Reply(200, {"url": f"{self.url}/{name}", "name": name, "id": name})

    def delete(self, request: Request) -> Reply:
        asked = request.json
        name = f"{asked.get('organization') or self.user(request)}/{asked['name']}"
        self.repo(request, name, write=True)
        del self.repos[name]
        return Reply(200, {})

    def settings(self, request: Request, name: str) -> Reply:
        self.repo(request, name, write=True).private = _private(request.json)
        return Reply(200, {})

    def info(self, request: Request, name: str, revision: str = "main") -> Reply:
        repo = self.repo(request, name)
        return Reply(200, repo.info(self.commit(repo, revision)))

    def preupload(self, request: Request, name: str, revision: str) -> Reply:
        repo = self.repo(request, name, write=True)
        head = self.commit(repo, revision)
        return Reply(200, {"files": repo.preupload(head, request.json["files"]), "commitOid": head.oid})

    def push(self, request: Request, name: str, revision: str) -> Reply:
        repo, branch = self.repo(request, name, write=True), unquote(revision)
        if branch not in repo.branches:
            raise refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        try:
            commit = repo.commit_lines(branch, request.body, self.objects)
        except Conflict:
            raise refusal(412, "A commit has happened since. Please refresh and try again.") from None
        except Missing as error:
            raise refusal(400, f"LFS pointer pointed to a file that does not exist: {error}") from None
        url = f"{self.url}/{name}/commit/{commit.oid}"
        return Reply(200, {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def tree(self, request: Request, name: str, revision: str, folder: str | None) -> Reply:
        commit = self.commit(self.repo(request, name), revision)
        folder = unquote(folder or "").strip("/")
        if not commit.inside(folder):
            raise refusal(404, "Entry not found", "EntryNotFound")
        return Reply(200, commit.tree(folder, request.query.get("recursive", "").lower() == "true"))

    def paths_info(self, request: Request, name: str, revision: str) -> Reply:
        files = self.commit(self.repo(request, name), revision).files
        paths = parse_qs(request.body.decode()).get("paths", [])  # the client sends a form
        return Reply(200, [files[path].entry(path) for path in paths if path in files])

    def commits(self, request: Request, name: str, revision: str) -> Reply:
        repo = self.repo(request, name)
        told = {"message": "", "date": DATE, "authors": []}
        return Reply(200, [{"id": c.oid, "title": c.title, **told} for c in repo.history(self.commit(repo, revision))])

    def branch(self, request: Request, name: str, branch: str) -> Reply:
        repo, branch = self.repo(request, name, write=True), unquote(branch)
        if request.method == "DELETE":
            repo.branches.pop(branch, None)
            return Reply(200, {})
        if branch in repo.branches:
            raise refusal(409, "Reference already exists")
        repo.branches[branch] = self.commit(repo, request.json.get("startingPoint") or "main").oid
        return Reply(201, {})

    def tag(self, request: Request, name: str, revision: str) -> Reply:
        repo = self.repo(request, name, write=True)
        if request.method == "DELETE":
            repo.tags.pop(unquote(revision), None)
            return Reply(200, {})
        tag = request.json["tag"]
        if tag in repo.tags:
            raise refusal(409, "Tag already exists")
        repo.tags[tag] = self.commit(repo, revision).oid
        return Reply(201, {})

    def batch(self, request: Request, name: str) -> Reply:
        self.repo(request, name, write=True)
        objects = [self._upload_of(o["oid"], o["size"]) for o in request.json["objects"]]
        return Reply(200, {"transfer": "basic", "objects": objects})

    def _upload_of(self, oid: str, size: int) -> dict[str, Any]:
        """Where to send an LFS object, whole or in parts; nothing where it is here already."""
        known = {"oid": oid, "size": size}
        if oid in self.objects:
            return known
        upload: dict[str, Any] = {"href": f"{self.url}/_lfs/{oid}", "header": {}}
        if self.part_size and size > self.part_size:
            parts = {str(i): f"{self.url}/_part/{oid}/{i}" for i in range(1, -(-size // self.part_size) + 1)}
            upload = {
                "href": f"{self.url}/_complete/{oid}",
                "header": {"chunk_size": str(self.part_size), **parts},
            }
        return {**known, "actions": {"upload": upload, "verify": {"href": f"{self.url}/_verify/{oid}"}}}

    def lfs(self, request: Request, oid: str) -> Reply:
        if request.method == "PUT":
            return self._keep(oid, request.body)
        return _content(request, self.objects[oid], oid, {}) if oid in self.objects else refusal(404, "no such object")

    def part(self, request: Request, oid: str, number: str) -> Reply:
        self.parts[oid, int(number)] = request.body
        return Reply(200, b"", {"ETag": hashlib.md5(request.body).hexdigest()})

    def complete(self, request: Request, oid: str) -> Reply:
        return self._keep(oid, b"".join(self.parts.pop((oid, p["partNumber"])) for p in request.json["parts"]))

    def _keep(self, oid: str, data: bytes) -> Reply:
        if hashlib.sha256(data).hexdigest() != oid:
            raise refusal(400, "the content does not have the promised checksum")
        self.objects[oid] = data
        return Reply(200, {})

    def verify(self, request: Request, oid: str) -> Reply:
        here = oid in self.objects and len(self.objects[oid]) == request.json["size"]
        return Reply(200 if here else 404, {})

    def resolve(self, request: Request, name: str, revision: str, path: str) -> Reply:
        commit = self.commit(self.repo(request, name), revision)
        file = commit.files.get(unquote(path))
        head = {"X-Repo-Commit": commit.oid}
        if file is None:
            raise refusal(404, "Entry not found", "EntryNotFound", **head)
        if not file.lfs:
            return _content(request, file.data, file.blob, head)
        # to another host name: the client follows a redirect to the same one itself, and loses these headers
        elsewhere = f"{self.url.replace('127.0.0.1', 'localhost')}/_lfs/{file.sha256}"
        linked = {"X-Linked-ETag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        return Reply(302, b"", {"Location": elsewhere, **linked, **head})


def _private(asked: dict[str, Any]) -> bool:
    return asked.get("visibility") == "private" or bool(asked.get("private"))


def _content(request: Request, data: bytes, etag: str, headers: dict[str, str]) -> Reply:
    """A file, or the range of it that was asked for, as when a download is continued."""
    headers = {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **headers}
    span = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if span is None:
        return Reply(200, data, headers)
    start, stop = int(span[1]), int(span[2] or len(data) - 1) + 1
    if start >= len(data):
        return Reply(416, b"", {"Content-Range": f"bytes */{len(data)}"})
    where = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
    return Reply(206, data[start:stop], {"Content-Range": where, **headers})
