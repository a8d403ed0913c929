"""A cluster as isolation: each guest is a pod of its own, in a virtual machine of Kata's.

Taken where `sandbox.runner` is kubernetes, and then nothing else is. The cluster isolates, so this
module only asks for it and checks what can be checked from outside: that the RuntimeClass is Kata's
(or gVisor's, where the floor is lowered by name), that a network policy denies the pods everything
and no other one adds to it, and, by the canary, that a program can't reach the API server. The
pod's first process waits; programs go in and out by `exec`, whose streams no node logs.

With the `agent-sandbox` project the pod is made through its Sandbox resource (v1beta1). Its warm
pools, and its claims, are not used: a guest is for one program.
"""

from __future__ import annotations

import datetime
import logging
import secrets
import time
from contextlib import ExitStack
from typing import Any, Final

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError
from websocket import WebSocketException, WebSocketTimeoutException

from vauban.agents.cluster import API_S, LABELS, Cluster
from vauban.agents.guest_source import boot_command
from vauban.agents.guests import GRACE_S, Guest, Tier
from vauban.agents.jail import NOBODY
from vauban.errors import GuestFailed, NoIsolation
from vauban.policy_sandbox import SandboxPolicy

logger = logging.getLogger(__name__)

FAILURES: Final = (ApiException, HTTPError, WebSocketException, OSError)
KATA: Final = ("kata",)
GVISOR: Final = ("gvisor", "runsc")
# The client asks for a descriptor that is gone when another thread has closed the stream.
CLOSED_MEANWHILE: Final = (TypeError, ValueError, AttributeError)
CHUNK_BYTES: Final = 32_768
POLL_S: Final = 0.2
_IDLE: Final = "import signal\nsignal.signal(17, signal.SIG_IGN)\nwhile True: signal.pause()"
# The first process has the guest's modules in its arguments, where this finds them: an `exec` has
# its command in the address of a request, which is too short for them.
_EXEC: Final = r"exec(open('/proc/1/cmdline').read().rstrip('\0').rpartition('\0')[2])"
_HOPELESS: Final = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)


def tier(policy: SandboxPolicy, cluster: Cluster | None = None) -> Tier:
    """:raises NoIsolation: the cluster is not there, or not as it has to be; says what."""
    if policy.kubernetes_image is None:
        raise NoIsolation("sandbox.kubernetes_image names no image for the pods")
    if _usable_s(policy) <= 0:
        raise NoIsolation(
            "sandbox.kubernetes_pod_s must be more than wall_s, kubernetes_start_s and"
            f" {GRACE_S:.0f} s together"
        )
    try:
        found = cluster or Cluster.load()
        kind = _kind(found.handler(policy.kubernetes_runtime_class), policy)
        others = found.deny_network(policy.kubernetes_namespace)
        if others:
            raise NoIsolation(
                f"the namespace {policy.kubernetes_namespace} has network policies that allow"
                f" something ({', '.join(others)}), which would add to the denial; remove them, or"
                " give the sandbox a namespace of its own"
            )
        found.sweep(policy.kubernetes_namespace)
        reach = found.own_address()
    except FAILURES as error:
        raise NoIsolation(f"the cluster can't be used: {_said(error)}") from None
    name = f"kubernetes-{kind}"
    return Tier(name, lambda limits: start(found, name, limits), reach=reach)


def _usable_s(policy: SandboxPolicy) -> float:
    """How old a pod may be, from when it is up, to take one more program."""
    return policy.kubernetes_pod_s - policy.kubernetes_start_s - policy.wall_s - GRACE_S


def _kind(handler: str, policy: SandboxPolicy) -> str:
    """What a RuntimeClass's handler stands for.

    :raises NoIsolation: for nothing that the policy accepts.
    """
    first = handler.partition("-")[0]
    if first in KATA:
        return "kata"
    if first in GVISOR and policy.floor != "vm":
        return "gvisor"
    raise NoIsolation(
        f"the RuntimeClass {policy.kubernetes_runtime_class} has the handler {handler!r}, which is"
        f" not Kata's, nor gVisor's with the floor lowered to it (sandbox.floor: {policy.floor})"
    )


def manifest(policy: SandboxPolicy, name: str) -> dict[str, Any]:
    """The pod, or the Sandbox around it, as the cluster's API takes it."""
    labels = dict(LABELS)
    spec = _pod_spec(policy)
    metadata = {"name": name, "namespace": policy.kubernetes_namespace, "labels": labels}
    if policy.kubernetes_resource == "pod":
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=policy.kubernetes_pod_s)
    return {
        "apiVersion": "agents.x-k8s.io/v1beta1",
        "kind": "Sandbox",
        "metadata": metadata,
        "spec": {
            "podTemplate": {"metadata": {"labels": labels}, "spec": spec},
            "shutdownTime": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "shutdownPolicy": "Delete",
        },
    }


def _pod_spec(policy: SandboxPolicy) -> dict[str, Any]:
    places = {"work": "/work", "tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108
    most = {"cpu": "1", "memory": f"{policy.memory_mb}Mi", "ephemeral-storage": "16Mi"}
    size = f"{policy.disk_mb}Mi"
    container = {
        "name": "program",
        "image": policy.kubernetes_image,
        "command": ["python3", "-I", "-B", "-c", _IDLE, boot_command()[-1]],
        "workingDir": "/work",
        "resources": {"limits": most, "requests": most},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in places.items()],
    }
    return {
        "runtimeClassName": policy.kubernetes_runtime_class,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": policy.kubernetes_pod_s,
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "hostNetwork": False,
        "hostPID": False,
        "hostIPC": False,
        "shareProcessNamespace": False,
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["127.0.0.1"]},  # one must be named
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": NOBODY,
            "runAsGroup": NOBODY,
            "fsGroup": NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": name, "emptyDir": {"medium": "Memory", "sizeLimit": size}} for name in places
        ],
    }


def start(cluster: Cluster, tier_name: str, policy: SandboxPolicy) -> Pod:
    """Make a pod and wait until it is ready for a program. What fails is deleted again.

    :raises GuestFailed: it does not come up in `kubernetes_start_s`.
    """
    name = f"vauban-sandbox-{secrets.token_hex(8)}"
    deadline = time.monotonic() + policy.kubernetes_start_s
    try:
        with ExitStack() as held:
            held.callback(_delete, cluster, policy, name)  # it may be there in spite of an error
            cluster.create(manifest(policy, name))
            _wait(cluster, policy.kubernetes_namespace, name, deadline)
            stream = cluster.open(name, policy.kubernetes_namespace, _exec_command())
            pod = Pod(cluster, tier_name, policy, name, StreamPort(stream))
            held.callback(pod._port.close)
            pod.prepare(deadline)
            held.pop_all()
            return pod
    except TimeoutError:
        raise GuestFailed(f"the pod was not up in {policy.kubernetes_start_s} s") from None
    except FAILURES as error:
        raise GuestFailed(f"the pod can't be used: {_said(error)}") from None


def _exec_command() -> list[str]:
    return ["python3", "-I", "-B", "-c", _EXEC]


def _wait(cluster: Cluster, namespace: str, name: str, deadline: float) -> None:
    """:raises TimeoutError: it does not run by the deadline. :raises GuestFailed: it never will."""
    while time.monotonic() < deadline:
        phase, waits_for, runs = cluster.state(name, namespace)
        if runs:
            return
        if phase in ("Failed", "Succeeded") or waits_for in _HOPELESS:
            raise GuestFailed(f"the pod does not start: {waits_for or phase}")
        time.sleep(POLL_S)
    raise TimeoutError


def _delete(cluster: Cluster, policy: SandboxPolicy, name: str) -> None:
    """Where the cluster does not answer, the pod ends by its own deadline."""
    agent_sandbox = policy.kubernetes_resource == "agent-sandbox"
    try:
        cluster.delete(name, policy.kubernetes_namespace, agent_sandbox=agent_sandbox)
    except FAILURES as error:
        logger.error("the pod %s can't be deleted: %s", name, _said(error))


def _said(error: Exception) -> str:
    """Not all that an error of the API holds: its answer may quote the manifest."""
    if isinstance(error, ApiException):
        return f"{error.status} {str(error.reason)[:200]}"
    return f"{type(error).__name__}: {str(error)[:200]}"


class StreamPort:
    """The streams of an `exec` as a port. `stream`: kubernetes' `WSClient`, in binary mode."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._left = b""
        self._timeout_s = float(API_S)

    @property
    def open(self) -> bool:
        try:
            self._stream.update(timeout=0)
            return bool(self._stream.is_open())
        except (*FAILURES, *CLOSED_MEANWHILE):
            return False

    def settimeout(self, seconds: float, /) -> None:
        self._timeout_s = seconds
        self._stream.sock.settimeout(seconds)

    def sendall(self, data: bytes, /) -> None:
        """:raises OSError: it can't be sent, or not in time."""
        try:
            for at in range(0, len(data), CHUNK_BYTES):
                self._stream.write_stdin(data[at : at + CHUNK_BYTES])
        except WebSocketException as error:
            raise OSError(str(error)) from None

    def recv(self, most: int, /) -> bytes:
        """:raises OSError: nothing comes any more; TimeoutError: nothing came in time."""
        deadline = time.monotonic() + self._timeout_s
        try:
            while not self._left:
                if (left_s := deadline - time.monotonic()) <= 0:
                    raise TimeoutError
                is_open = self._stream.is_open()
                self._stream.update(timeout=left_s)
                self._left = self._stream.read_all()
                if not is_open and not self._left:
                    return b""
        except WebSocketTimeoutException:
            raise TimeoutError from None
        except WebSocketException as error:
            raise OSError(str(error)) from None
        except CLOSED_MEANWHILE:
            return b""
        part, self._left = self._left[:most], self._left[most:]
        return part

    def close(self) -> None:
        try:
            self._stream.close()
        except FAILURES:
            return


class Pod(Guest):
    """A pod that waits for programs."""

    def __init__(
        self, cluster: Cluster, tier_name: str, policy: SandboxPolicy, name: str, port: StreamPort
    ) -> None:
        super().__init__(tier_name, policy, port)
        self._cluster = cluster
        self._name = name
        self._stream = port
        self._ended = False
        self._usable_until = time.monotonic() + _usable_s(policy)

    @property
    def alive(self) -> bool:
        return not self._ended and time.monotonic() < self._usable_until and self._stream.open

    def kill(self) -> str:
        """Delete it."""
        if not self._ended:
            self._ended = True
            self._stream.close()
            _delete(self._cluster, self._policy, self._name)
        return ""
