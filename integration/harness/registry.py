"""A real registry on the loopback interface, with a client for putting images into it and looking at them."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import httpx

from integration.harness.leftovers import MARKER
from integration.harness.process import Process, accepts
from tests.doubles.closed_port import ClosedPort
from tests.doubles.htpasswd import write_htpasswd

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
"""
AUTH = "auth: {{htpasswd: {{realm: loopback, path: {path}}}}}\n"


class Registry:
    """Debian's docker-registry with a file-system store below `folder`; for everybody, until `admit` says for whom."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        # Held as long as this object lives: nobody else gets it before the start or while it is stopped.
        self._held = ClosedPort()
        self.port = self._held.port
        self._config = folder / "config.yml"
        self._config.write_text(CONFIG.format(root=folder / "store", port=self.port))
        # Started again in the middle of a node's life it still belongs to whoever made it, and does not end with the node.
        self._env = {MARKER: os.environ.get(MARKER, "")}
        self._process: Process | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; the store keeps what it had."""
        argv = ["docker-registry", "serve", str(self._config)]
        self._process = Process("docker-registry", argv, self._folder / "log", self._env)
        self._process.wait_until(lambda: accepts(("127.0.0.1", self.port)))

    def stop(self) -> None:
        """Stop answering."""
        if self._process:
            self._process.stop()
            self._process = None

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._held.close()

    def admit(self, users: Mapping[str, str]) -> None:
        """Ask for a name and a password of these from now on; once it asks, a change counts without a new start."""
        path = self._folder / "htpasswd"
        write_htpasswd(path, users)
        text = self._config.read_text()
        if "htpasswd" not in text:
            self._config.write_text(text + AUTH.format(path=path))
            self.stop()
            self.start()

    def client(self) -> "RegistryClient":
        return RegistryClient(f"http://{self.host}")


class RegistryClient:
    """The few calls of the distribution API that tests need.

    Source: OCI Distribution Spec 1.1.
    """

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, trust_env=False, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._http.close()

    def push_blob(self, repository: str, digest: str, path: Path) -> None:
        """Upload a file in one piece unless the registry has it."""
        if self._http.head(f"/v2/{repository}/blobs/{digest}").status_code == httpx.codes.OK:
            return
        with open(path, "rb") as content:
            self._upload(repository, digest, content, path.stat().st_size)

    def has(self, repository: str, tag: str) -> bool:
        """Whether there is an image under this tag."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        return self._http.head(f"/v2/{repository}/manifests/{tag}", headers=headers).status_code == httpx.codes.OK

    def push_manifest(self, repository: str, tag: str, manifest: bytes, media_type: str) -> None:
        """Put a manifest under a tag."""
        headers = {"Content-Type": media_type}
        self._http.put(f"/v2/{repository}/manifests/{tag}", content=manifest, headers=headers).raise_for_status()

    def push_image(self, repository: str, tag: str, manifest: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """Put an image under a tag whose layers are there already; the manifest's config entry is made to fit."""
        raw = json.dumps(config).encode()
        digest = "sha256:" + hashlib.sha256(raw).hexdigest()
        self._upload(repository, digest, raw, len(raw))
        body = {**manifest, "config": {**manifest["config"], "digest": digest, "size": len(raw)}}
        self.push_manifest(repository, tag, json.dumps(body).encode(), manifest["mediaType"])

    def _upload(self, repository: str, digest: str, content: IO[bytes] | bytes, size: int) -> None:
        upload = self._http.post(f"/v2/{repository}/blobs/uploads/").raise_for_status()
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        where = httpx.URL(upload.headers["Location"]).copy_merge_params({"digest": digest})
        self._http.put(where, content=content, headers=headers).raise_for_status()

    def manifest(self, repository: str, tag: str) -> Mapping[str, Any]:
        """The image manifest under a tag or digest; of an index, the first entry's."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        answer = self._http.get(f"/v2/{repository}/manifests/{tag}", headers=headers).raise_for_status()
        manifest: dict[str, Any] = json.loads(answer.content)
        if "manifests" in manifest:
            return self.manifest(repository, manifest["manifests"][0]["digest"])
        return manifest

    def descriptor(self, repository: str, tag: str) -> dict[str, Any]:
        """How an index names the manifest under a tag."""
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        answer = self._http.get(f"/v2/{repository}/manifests/{tag}", headers=headers).raise_for_status()
        digest = "sha256:" + hashlib.sha256(answer.content).hexdigest()
        return {"mediaType": answer.headers["Content-Type"], "digest": digest, "size": len(answer.content)}

    def image_digest(self, repository: str, tag: str) -> str:
        """The digest of the image manifest under a tag; of an index, the first entry's."""
        answer = self._http.get(f"/v2/{repository}/manifests/{tag}", headers={"Accept": ", ".join(MANIFEST_TYPES)})
        document = json.loads(answer.raise_for_status().content)
        if "manifests" in document:
            return str(document["manifests"][0]["digest"])
        return "sha256:" + hashlib.sha256(answer.content).hexdigest()

    def blob(self, repository: str, digest: str) -> bytes:
        """A whole blob."""
        return self._http.get(f"/v2/{repository}/blobs/{digest}").raise_for_status().content

    def config(self, repository: str, tag: str) -> Mapping[str, Any]:
        """The image configuration."""
        config: dict[str, Any] = json.loads(self.blob(repository, self.manifest(repository, tag)["config"]["digest"]))
        return config
