"""The Container Runtime Interface as kubelet uses it, in the few words that tests need."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from integration.api import cri_pb2 as api
from integration.harness.process import wait_for

Answer = TypeVar("Answer", bound=Message)
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Output:
    """What a command in a container printed, and how it ended."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What images occupy, by the runtime's own count."""

    mountpoint: str
    used_bytes: int
    inodes: int


class Cri:
    """A client of RuntimeService and ImageService, version v1, on one socket."""

    def __init__(self, address: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{address}")

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: Message, answer: type[Answer], timeout_s: float = TIMEOUT_S) -> Answer:
        call = self._channel.unary_unary(
            f"/runtime.v1.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        done: Answer = call(request, timeout=timeout_s, wait_for_ready=True)
        return done

    def runtime_ready(self) -> bool:
        """Whether containers on the host's network can run."""
        try:
            status = self._call("RuntimeService/Status", api.StatusRequest(), api.StatusResponse).status
        except grpc.RpcError:  # the service is still being set up
            return False
        return any(condition.type == "RuntimeReady" and condition.status for condition in status.conditions)

    def pull(self, reference: str) -> str:
        """Pull an image and return its id."""
        request = api.PullImageRequest(image=api.ImageSpec(image=reference))
        return self._call("ImageService/PullImage", request, api.PullImageResponse).image_ref

    def images(self) -> dict[str, int]:
        """Sizes of the images by id."""
        answer = self._call("ImageService/ListImages", api.ListImagesRequest(), api.ListImagesResponse)
        return {image.id: image.size for image in answer.images}

    def remove_image(self, image: str) -> None:
        request = api.RemoveImageRequest(image=api.ImageSpec(image=image))
        self._call("ImageService/RemoveImage", request, api.RemoveImageResponse)

    def image_usage(self) -> Usage:
        """What the image file system holds; containerd's figures may be ten seconds old."""
        answer = self._call("ImageService/ImageFsInfo", api.ImageFsInfoRequest(), api.ImageFsInfoResponse)
        usage = answer.image_filesystems[0]
        return Usage(usage.fs_id.mountpoint, usage.used_bytes.value, usage.inodes_used.value)

    def run_sandbox(self, name: str, logs: Path, cgroup: str, *, privileged: bool = False) -> "Sandbox":
        """Start a pod sandbox on the host's network; only a `privileged` one may have privileged containers."""
        host = api.NamespaceOption(network=api.NODE)
        config = api.PodSandboxConfig(
            metadata=api.PodSandboxMetadata(name=name, uid=name, namespace="default"),
            log_directory=str(logs),
            linux=api.LinuxPodSandboxConfig(
                cgroup_parent=f"/{cgroup}",
                security_context=api.LinuxSandboxSecurityContext(namespace_options=host, privileged=privileged),
            ),
        )
        request = api.RunPodSandboxRequest(config=config)
        answer = self._call("RuntimeService/RunPodSandbox", request, api.RunPodSandboxResponse)
        return Sandbox(self, answer.pod_sandbox_id, config)

    def remove_all_sandboxes(self) -> None:
        """Stop and remove every sandbox with its containers."""
        answer = self._call("RuntimeService/ListPodSandbox", api.ListPodSandboxRequest(), api.ListPodSandboxResponse)
        for item in answer.items:
            self.remove_sandbox(item.id)

    def remove_sandbox(self, sandbox: str) -> None:
        """Stop and remove a sandbox with its containers."""
        stop = api.StopPodSandboxRequest(pod_sandbox_id=sandbox)
        self._call("RuntimeService/StopPodSandbox", stop, api.StopPodSandboxResponse)
        remove = api.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
        self._call("RuntimeService/RemovePodSandbox", remove, api.RemovePodSandboxResponse)

    def create_container(self, sandbox: "Sandbox", config: api.ContainerConfig) -> str:
        request = api.CreateContainerRequest(pod_sandbox_id=sandbox.id, config=config, sandbox_config=sandbox.config)
        return self._call("RuntimeService/CreateContainer", request, api.CreateContainerResponse).container_id

    def start_container(self, container: str) -> None:
        request = api.StartContainerRequest(container_id=container)
        self._call("RuntimeService/StartContainer", request, api.StartContainerResponse)

    def container_status(self, container: str) -> api.ContainerStatus:
        request = api.ContainerStatusRequest(container_id=container)
        return self._call("RuntimeService/ContainerStatus", request, api.ContainerStatusResponse).status

    def writable_bytes(self, container: str) -> int:
        """Size of a container's writable layer; containerd's figure may be ten seconds old."""
        request = api.ContainerStatsRequest(container_id=container)
        answer = self._call("RuntimeService/ContainerStats", request, api.ContainerStatsResponse)
        return answer.stats.writable_layer.used_bytes.value

    def exec(self, container: str, command: Sequence[str], timeout_s: int = 240) -> Output:
        """Run a command inside a running container."""
        request = api.ExecSyncRequest(container_id=container, cmd=command, timeout=timeout_s)
        answer = self._call("RuntimeService/ExecSync", request, api.ExecSyncResponse)
        return Output(answer.exit_code, answer.stdout.decode(errors="replace"), answer.stderr.decode(errors="replace"))

    def remove_container(self, container: str) -> None:
        """Stop a container at once and remove it."""
        stop = api.StopContainerRequest(container_id=container, timeout=0)
        self._call("RuntimeService/StopContainer", stop, api.StopContainerResponse)
        remove = api.RemoveContainerRequest(container_id=container)
        self._call("RuntimeService/RemoveContainer", remove, api.RemoveContainerResponse)


class Sandbox:
    """A running pod sandbox."""

    def __init__(self, cri: Cri, sandbox_id: str, config: api.PodSandboxConfig) -> None:
        self._cri = cri
        self.id = sandbox_id
        self.config = config

    def start(self, name: str, image: str, command: Sequence[str], *, privileged: bool = False) -> "Container":
        """Create and start a container; `image` is an id or a reference of a pulled image.

        A `privileged` one needs a privileged pod.
        """
        container = self.create(name, image, command, privileged=privileged)
        container.start()
        return container

    def create(self, name: str, image: str, command: Sequence[str], *, privileged: bool = False) -> "Container":
        """Create one and leave it to the caller to start it, and to remove it if it does not start."""
        config = api.ContainerConfig(
            metadata=api.ContainerMetadata(name=name),
            image=api.ImageSpec(image=image),
            command=command,
            log_path=f"{name}.log",
            linux=api.LinuxContainerConfig(
                security_context=api.LinuxContainerSecurityContext(
                    privileged=privileged, namespace_options=api.NamespaceOption(network=api.NODE)
                )
            ),
        )
        container = self._cri.create_container(self, config)
        return Container(self._cri, container, Path(self.config.log_directory) / f"{name}.log")

    def remove(self) -> None:
        """Stop and remove the sandbox and its containers."""
        self._cri.remove_sandbox(self.id)


class Container:
    """A container, started but for what `Sandbox.create` returns."""

    def __init__(self, cri: Cri, container_id: str, log: Path) -> None:
        self._cri = cri
        self.id = container_id
        self._log = log

    def start(self) -> None:
        """Start what was only created."""
        self._cri.start_container(self.id)

    def exec(self, command: Sequence[str]) -> Output:
        """Run a command inside it."""
        return self._cri.exec(self.id, command)

    def writable_bytes(self) -> int:
        """Size of its writable layer."""
        return self._cri.writable_bytes(self.id)

    def output(self) -> Output:
        """What it has printed so far, and its exit code if it has ended.

        Source: the log format of CRI: time, stream, F (full line) or P (part of one), text.
        """
        texts = {"stdout": "", "stderr": ""}
        # Not splitlines: what a container prints may have any character in it.
        for line in filter(None, self._log.read_bytes().decode(errors="replace").replace("\r\n", "\n").split("\n")):
            _time, stream, tag, text = line.split(" ", 3)
            texts[stream] += text + ("\n" if tag == "F" else "")
        return Output(self._cri.container_status(self.id).exit_code, texts["stdout"], texts["stderr"])

    def has_printed(self, text: str = "") -> bool:
        """Whether any line of output has arrived in its log, or one that has `text` in it."""
        return self._log.exists() and self._log.stat().st_size > 0 and text in self._log.read_text(errors="replace")

    def ended(self) -> bool:
        """Whether its process is gone."""
        return self._cri.container_status(self.id).state == api.CONTAINER_EXITED

    def wait(self, timeout_s: float = 120.0) -> Output:
        """Wait for its end and return what it printed."""
        wait_for(self.ended, f"the end of container {self.id}", timeout_s)
        return self.output()

    def remove(self) -> None:
        """Stop and remove it."""
        self._cri.remove_container(self.id)
