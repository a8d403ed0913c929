"""Pods as isolation: what the cluster is asked for, and that it is asked to delete it again.

No cluster was at hand: the official client talks to a stand-in for the API server, and a program
runs in namespaces in place of a pod. Kata, network policies and agent-sandbox's controller are not
in these tests.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cluster import FakeCluster, served
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.stream.ws_client import WSClient

from vauban.agents import canary, pods, tiers
from vauban.agents import cluster as api
from vauban.agents.cluster import LABELS, Cluster
from vauban.agents.frames import Job, Reason
from vauban.agents.pods import manifest
from vauban.agents.sandbox import Sandbox
from vauban.errors import GuestFailed, NoIsolation
from vauban.policy_sandbox import SandboxPolicy

POLICY = SandboxPolicy(
    runner="kubernetes", kubernetes_image="python@sha256:0", wall_s=60, cpu_s=60, pool=0
)


@pytest.fixture
def fake() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
def cluster(fake: FakeCluster) -> Iterator[Cluster]:
    with served(fake) as cluster:
        yield cluster


def test_a_pod_gets_nothing_from_the_cluster() -> None:
    made = manifest(POLICY.model_copy(update={"disk_mb": 3, "memory_mb": 200}), "name")
    spec = made["spec"]
    assert spec["runtimeClassName"] == "kata"
    assert spec["restartPolicy"] == "Never"
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not any(spec[kind] for kind in ("hostNetwork", "hostPID", "hostIPC"))
    assert spec["dnsPolicy"] == "None"
    assert spec["activeDeadlineSeconds"] == POLICY.kubernetes_pod_s
    assert spec["securityContext"]["runAsNonRoot"] is True
    (container,) = spec["containers"]
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    assert (limits["memory"], limits["cpu"]) == ("200Mi", "1")
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "privileged": False,
        "readOnlyRootFilesystem": True,
    }
    assert not container.keys() & {"env", "envFrom", "ports", "lifecycle"}
    for volume in spec["volumes"]:
        assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "3Mi"}
    assert made["metadata"]["labels"] == LABELS


def test_the_official_client_knows_each_field() -> None:
    made = manifest(POLICY, "name")
    kept = client.ApiClient().sanitize_for_serialization(client.V1Pod.from_dict(made))
    assert kept == made


def test_a_sandbox_of_agent_sandbox_holds_the_same_pod_and_ends_by_itself() -> None:
    made = manifest(POLICY.model_copy(update={"kubernetes_resource": "agent-sandbox"}), "name")
    assert (made["apiVersion"], made["kind"]) == ("agents.x-k8s.io/v1beta1", "Sandbox")
    template = made["spec"]["podTemplate"]
    assert template["spec"] == manifest(POLICY, "name")["spec"]
    assert template["metadata"]["labels"] == LABELS
    assert made["spec"]["shutdownPolicy"] == "Delete"
    assert made["spec"]["shutdownTime"].endswith("Z")


@pytest.mark.parametrize(
    ("handler", "floor", "tier"),
    [
        ("kata", "vm", "kubernetes-kata"),
        ("kata-qemu", "gvisor", "kubernetes-kata"),
        ("runsc", "gvisor", "kubernetes-gvisor"),
        ("runsc", "vm", None),
        ("runc", "bubblewrap", None),
        ("", "gvisor", None),
        ("katastrophe", "vm", None),
    ],
)
def test_only_a_runtime_that_isolates_is_taken(
    fake: FakeCluster, cluster: Cluster, handler: str, floor: Any, tier: str | None
) -> None:
    fake.handler = handler
    policy = POLICY.model_copy(update={"floor": floor})
    if tier is None:
        with pytest.raises(NoIsolation, match="has the handler"):
            pods.tier(policy, cluster)
        assert not fake.policies
    else:
        assert pods.tier(policy, cluster).name == tier


def test_pods_are_denied_the_network_and_no_other_policy_may_allow_it(
    fake: FakeCluster, cluster: Cluster
) -> None:
    for _ in range(2):  # it may be there already
        assert pods.tier(POLICY, cluster).reach == ("127.0.0.1", 1)
    (denial,) = fake.policies.values()
    assert denial["spec"] == {
        "podSelector": {"matchLabels": LABELS},
        "policyTypes": ["Ingress", "Egress"],
    }
    assert fake.deleted[:2] == ["status.phase=Failed", "status.phase=Succeeded"]
    fake.policies["dns"] = {
        "metadata": {"name": "dns"},
        "spec": {"podSelector": {}, "egress": [{}]},
    }
    with pytest.raises(NoIsolation, match="dns"):
        pods.tier(POLICY, cluster)


def test_settings_that_cannot_work_are_named(cluster: Cluster) -> None:
    for update, what in (
        ({"kubernetes_image": None}, "kubernetes_image"),
        ({"kubernetes_pod_s": 61}, "kubernetes_pod_s"),
        ({"kubernetes_pod_s": 125}, "kubernetes_pod_s"),
    ):
        with pytest.raises(NoIsolation, match=what):
            pods.tier(POLICY.model_copy(update=update), cluster)
    silent = client.Configuration()
    silent.host, silent.retries = "http://127.0.0.1:1", 0
    with pytest.raises(NoIsolation, match="can't be used"):
        pods.tier(POLICY, Cluster(silent))


def test_nothing_runs_here_when_the_cluster_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    def no_cluster(*_: object) -> Any:
        raise NoIsolation("no cluster")

    monkeypatch.setattr(pods, "tier", no_cluster)
    monkeypatch.setattr(tiers, "load_image", lambda *_: pytest.fail("a local machine was tried"))
    with pytest.raises(NoIsolation, match="no cluster"):
        tiers.choose(POLICY.model_copy(update={"floor": "bubblewrap"}), tmp_path)


@pytest.mark.parametrize("resource", ["pod", "agent-sandbox"])
def test_a_program_runs_and_its_pod_is_deleted(
    fake: FakeCluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, resource: str
) -> None:
    monkeypatch.setattr(Cluster, "load", lambda: cluster)
    policy = POLICY.model_copy(update={"kubernetes_resource": resource, "per": "session"})
    with Sandbox(policy, canary=False) as sandbox:
        job = Job(b"print(open('d').read())\nopen('o', 'w').write('x')", {"d": b"in"}, ("o", "no"))
        result = sandbox.run(job, "a")
        assert (result.tier, result.reason, result.out) == (
            "kubernetes-kata",
            Reason.EXITED,
            b"in\n",
        )
        assert (result.files, set(result.missing)) == ({"o": b"x"}, {"no"})
        large = Job(b"print('x' * 200_000)", {"f": bytes(3 << 20)}, ("f",))
        again = sandbox.run(large, "a")
        assert (len(again.out), len(again.files["f"])) == (200_001, 3 << 20)
        assert len(fake.pods) == 1
    assert not fake.pods
    assert fake.deleted[2:] == [body["metadata"]["name"] for body in fake.asked]


def test_limits_hold_and_a_lost_pod_is_an_answer(fake: FakeCluster, cluster: Cluster) -> None:
    for code, update, reason in (
        (b"while True: pass", {"cpu_s": 1}, Reason.CPU_LIMIT),
        (b"import os, time\nif not os.fork(): os.setsid()\ntime.sleep(99)", {"wall_s": 1},
         Reason.TIME_LIMIT),
        (b"bytearray(300 << 20)", {}, Reason.EXITED),
        (b"import os\n[os.kill(int(p), 9) for p in os.listdir('/proc') if p.isdigit()]", {},
         Reason.GUEST_LOST),
    ):  # fmt: skip
        limits = POLICY.model_copy(update=update)
        pod = pods.start(cluster, "kubernetes-kata", limits)
        assert pod.alive
        result = pod.run(Job(code))
        pod.kill()
        assert result.reason is reason, (code, result)
        assert result.status
        assert not pod.alive
    assert not fake.pods


def test_the_canary_tries_the_network_where_there_is_a_device(
    fake: FakeCluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "load", lambda: cluster)
    monkeypatch.setattr(canary, "PATIENT_S", 20)
    Sandbox(POLICY).close()
    assert not fake.pods
    monkeypatch.setattr(canary, "PROBES", "port, path, name, word, reach = WHAT\nprint([reach[1]])")
    with pytest.raises(NoIsolation, match="not tight"):
        Sandbox(POLICY)
    assert not fake.pods


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"phase": "Pending"}, "not up in 1 s"),
        ({"phase": "Failed"}, "does not start: Failed"),
        (
            {
                "phase": "Pending",
                "containerStatuses": [
                    {
                        "name": "program", "image": "", "imageID": "", "ready": False,
                        "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull"}},
                    }
                ],
            },
            "does not start: ErrImagePull",
        ),
    ],
)  # fmt: skip
def test_a_pod_that_does_not_start_is_deleted(
    fake: FakeCluster, cluster: Cluster, status: dict[str, Any], said: str
) -> None:
    fake.status = status
    with pytest.raises(GuestFailed, match=said):
        pods.start(cluster, "tier", POLICY.model_copy(update={"kubernetes_start_s": 1}))
    assert not fake.pods
    assert fake.deleted


@pytest.mark.parametrize("step", ["create", "state", "open"])
def test_it_is_deleted_wherever_its_start_fails(
    fake: FakeCluster, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    real = getattr(Cluster, step)

    def fails(self: Cluster, *arguments: Any) -> None:
        if step == "create":
            real(self, *arguments)  # the answer is what was lost
        raise ApiException(status=500, reason="no more")

    monkeypatch.setattr(Cluster, step, fails)
    with pytest.raises(GuestFailed, match="500 no more"):
        pods.start(cluster, "tier", POLICY)
    assert not fake.pods
    assert len(fake.deleted) == 1


def test_a_cluster_that_does_not_delete_does_not_stop_the_caller(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ApiException(status=403, reason="Forbidden")

    pod = pods.start(cluster, "tier", POLICY)
    monkeypatch.setattr(Cluster, "delete", fails)
    pod.kill()
    assert "can't be deleted: 403 Forbidden" in caplog.text


def test_an_exec_that_is_not_answered_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "API_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        configuration = client.Configuration()
        configuration.host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(TimeoutError):
            Cluster(configuration).open("pod", "namespace", ["true"])


def test_what_opens_too_late_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "API_S", 0.1)
    answer, closed = threading.Event(), threading.Event()

    def late(*_: object, **__: object) -> Any:
        answer.wait()
        return SimpleNamespace(close=closed.set)

    monkeypatch.setattr(api, "stream", late)
    with pytest.raises(TimeoutError):
        Cluster(client.Configuration()).open("pod", "namespace", ["true"])
    answer.set()
    assert closed.wait(10)


def test_a_stream_that_another_thread_closed_has_ended() -> None:
    stream = WSClient.__new__(WSClient)
    stream._connected = True  # as it was a moment before
    stream.sock = SimpleNamespace(connected=True, sock=None)
    with pytest.raises(TypeError):
        stream.update(timeout=0)
    port = pods.StreamPort(stream)
    assert port.recv(4) == b""
    assert not port.open
