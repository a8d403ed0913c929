"""The few calls of the Kubernetes API that the sandbox needs, by the official client."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Final, Self

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from vauban.errors import NoIsolation

API_S: Final = 10
"""Longest time for one answer of the API, in seconds."""
LABELS: Final = {
    "app.kubernetes.io/managed-by": "vauban",
    "app.kubernetes.io/component": "sandbox",
}
NETWORK_POLICY: Final = "vauban-sandbox"
_SELECTOR: Final = ",".join(f"{name}={value}" for name, value in LABELS.items())
_SANDBOXES: Final = ("agents.x-k8s.io", "v1beta1")
_IN_CLUSTER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409


@dataclass(frozen=True, slots=True)
class Cluster:
    """A connection. Each method raises `ApiException` where the API refuses, and urllib3's
    `HTTPError` where it does not answer."""

    configuration: Any

    @classmethod
    def load(cls) -> Self:
        """Of the pod that this process runs in, or else the current context of the kubeconfig.

        :raises NoIsolation: there is neither.
        """
        configuration = client.Configuration()
        load = config.load_incluster_config if _IN_CLUSTER.exists() else config.load_kube_config
        try:
            load(client_configuration=configuration)
        except config.ConfigException as error:
            raise NoIsolation(f"no cluster is configured: {error}") from None
        configuration.retries = 1
        return cls(configuration)

    @property
    def _client(self) -> Any:
        return client.ApiClient(self.configuration)

    @property
    def _pods(self) -> Any:
        return client.CoreV1Api(self._client)

    def handler(self, runtime_class: str) -> str:
        """What a RuntimeClass is run by, such as `kata-qemu`."""
        found = client.NodeV1Api(self._client).read_runtime_class(
            runtime_class, _request_timeout=API_S
        )
        return str(found.handler)

    def deny_network(self, namespace: str) -> list[str]:
        """Have a network policy that denies the pods of ours everything.

        :returns: names of the namespace's other policies that allow something.
        """
        api = client.NetworkingV1Api(self._client)
        body = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": NETWORK_POLICY, "namespace": namespace},
            "spec": {
                "podSelector": {"matchLabels": LABELS},
                "policyTypes": ["Ingress", "Egress"],
            },
        }
        try:
            api.create_namespaced_network_policy(namespace, body, _request_timeout=API_S)
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            api.replace_namespaced_network_policy(
                NETWORK_POLICY, namespace, body, _request_timeout=API_S
            )
        found = api.list_namespaced_network_policy(namespace, _request_timeout=API_S)
        return [each.metadata.name for each in found.items if each.spec.ingress or each.spec.egress]

    def own_address(self) -> tuple[str, int]:
        """Where every pod finds the API server, if its network lets it."""
        found = self._pods.read_namespaced_service("kubernetes", "default", _request_timeout=API_S)
        return str(found.spec.cluster_ip), int(found.spec.ports[0].port)

    def sweep(self, namespace: str) -> None:
        """Delete the pods of ours that have ended."""
        for phase in ("Failed", "Succeeded"):
            self._pods.delete_collection_namespaced_pod(
                namespace,
                label_selector=_SELECTOR,
                field_selector=f"status.phase={phase}",
                _request_timeout=API_S,
            )

    def create(self, manifest: dict[str, Any]) -> None:
        """Make a Pod or a Sandbox."""
        namespace = manifest["metadata"]["namespace"]
        if manifest["kind"] == "Pod":
            self._pods.create_namespaced_pod(namespace, manifest, _request_timeout=API_S)
        else:
            client.CustomObjectsApi(self._client).create_namespaced_custom_object(
                *_SANDBOXES, namespace, "sandboxes", manifest, _request_timeout=API_S
            )

    def state(self, name: str, namespace: str) -> tuple[str, str, bool]:
        """A pod's phase, what its container waits for, and whether that runs. A pod that is not
        there yet is pending: a controller may be about to make it."""
        try:
            pod = self._pods.read_namespaced_pod(name, namespace, _request_timeout=API_S)
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise
            return "Pending", "", False
        for each in pod.status.container_statuses or ():
            waits = each.state.waiting
            runs = pod.status.phase == "Running" and each.state.running is not None
            return str(pod.status.phase), str(waits.reason or "") if waits else "", runs
        return str(pod.status.phase), "", False

    def open(self, name: str, namespace: str, command: list[str]) -> Any:
        """Start a command in a pod; its streams, as a `WSClient`.

        :raises TimeoutError: the API does not answer. The client waits for that without end.
        """
        opened: Future[Any] = Future()
        options = {"stdin": True, "stdout": True, "stderr": False, "tty": False, "binary": True}

        def connect() -> None:
            try:
                found = stream(  # it changes its client while it connects, so that is its own
                    self._pods.connect_get_namespaced_pod_exec, name, namespace, command=command,
                    **options, _preload_content=False,
                )  # fmt: skip
            except (ApiException, OSError, ValueError) as error:
                opened.set_exception(error)
            else:
                opened.set_result(found)

        Thread(target=connect, name="vauban-exec", daemon=True).start()
        try:
            return opened.result(API_S)
        except TimeoutError:
            opened.add_done_callback(_close)
            raise

    def delete(self, name: str, namespace: str, *, agent_sandbox: bool) -> None:
        """Delete a Pod, or a Sandbox with its pod. One that is not there is no error."""
        try:
            if agent_sandbox:
                client.CustomObjectsApi(self._client).delete_namespaced_custom_object(
                    *_SANDBOXES, namespace, "sandboxes", name, _request_timeout=API_S
                )
            else:
                self._pods.delete_namespaced_pod(name, namespace, _request_timeout=API_S)
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise


def _close(opened: Future[Any]) -> None:
    """End what was opened too late."""
    if opened.exception() is None:
        opened.result().close()
