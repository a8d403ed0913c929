"""A stand-in for a cluster's API server: as much of it as the sandbox asks for, over real HTTP and
WebSockets. What would be a pod is a process in namespaces of its own, by bubblewrap."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from kubernetes import client
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from vauban.agents.cluster import Cluster

CONFINED = [
    "bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--uid", "65534", "--gid", "65534",
    "--cap-drop", "ALL", "--clearenv", "--setenv", "PATH", "/usr/bin", "--ro-bind", "/usr", "/usr",
    "--symlink", "usr/bin", "/bin", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64",
    "/lib64", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/work", "--tmpfs", "/tmp",  # noqa: S108
    "--remount-ro", "/", "--",
]  # fmt: skip
# The first process has the pod's arguments, and starts what is `exec`ed.
FIRST = "import subprocess, sys\nsubprocess.run(sys.argv[1:-1])"


class FakeCluster:
    """Pods, Sandboxes and network policies that were asked for, and what was deleted."""

    def __init__(self) -> None:
        self.handler = "kata-qemu"
        self.pods: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.policies: dict[str, dict[str, Any]] = {}
        self.status: dict[str, Any] = {
            "phase": "Running",
            "containerStatuses": [
                {
                    "name": "program", "image": "", "imageID": "", "ready": True, "restartCount": 0,
                    "state": {"running": {}},
                }
            ],
        }  # fmt: skip
        in_namespace = "/namespaces/{namespace}"
        pods = f"/api/v1{in_namespace}/pods"
        policies = f"/apis/networking.k8s.io/v1{in_namespace}/networkpolicies"
        sandboxes = f"/apis/agents.x-k8s.io/v1beta1{in_namespace}/sandboxes"
        self.app = Starlette(
            routes=[
                Route("/apis/node.k8s.io/v1/runtimeclasses/{name}", self.runtime_class),
                Route("/api/v1/namespaces/default/services/kubernetes", self.service),
                Route(policies, self.policy, methods=["GET", "POST"]),
                Route(policies + "/{name}", self.policy, methods=["PUT"]),
                Route(pods, self.collection, methods=["POST", "DELETE"]),
                Route(pods + "/{name}", self.pod, methods=["GET", "DELETE"]),
                Route(sandboxes, self.collection, methods=["POST"]),
                Route(sandboxes + "/{name}", self.pod, methods=["DELETE"]),
                WebSocketRoute(pods + "/{name}/exec", self.execute),
            ]
        )

    async def runtime_class(self, request: Request) -> JSONResponse:
        name = request.path_params["name"]
        return JSONResponse({"metadata": {"name": name}, "handler": self.handler})

    async def service(self, request: Request) -> JSONResponse:
        return JSONResponse({"spec": {"clusterIP": "127.0.0.1", "ports": [{"port": 1}]}})

    async def policy(self, request: Request) -> JSONResponse:
        if request.method == "GET":
            return JSONResponse({"items": list(self.policies.values())})
        body = await request.json()
        name = body["metadata"]["name"]
        if request.method == "POST" and name in self.policies:
            return JSONResponse({"reason": "AlreadyExists"}, 409)
        self.policies[name] = body
        return JSONResponse(body)

    async def collection(self, request: Request) -> JSONResponse:
        if request.method == "DELETE":
            self.deleted.append(request.query_params["fieldSelector"])
            return JSONResponse({"status": "Success"})
        body = await request.json()
        self.asked.append(body)
        spec = body["spec"] if body["kind"] == "Pod" else body["spec"]["podTemplate"]["spec"]
        self.pods[body["metadata"]["name"]] = spec
        return JSONResponse(body, 201)

    async def pod(self, request: Request) -> JSONResponse:
        name = request.path_params["name"]
        if name not in self.pods:
            return JSONResponse({"reason": "NotFound"}, 404)
        if request.method == "DELETE":
            del self.pods[name]
            self.deleted.append(name)
        return JSONResponse(
            {"metadata": {"name": name}, "spec": {"containers": []}, "status": self.status}
        )

    async def execute(self, socket: WebSocket) -> None:
        command = socket.query_params.getlist("command")
        spec = self.pods[socket.path_params["name"]]
        arguments = spec["containers"][0]["command"]
        await socket.accept("v4.channel.k8s.io")
        process = await asyncio.create_subprocess_exec(
            *CONFINED, "python3", "-I", "-c", FIRST, *command, arguments[-1],
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        reader = asyncio.create_task(self.pass_on(process.stdout, socket))
        while (message := await socket.receive())["type"] == "websocket.receive":
            data = message["bytes"]
            assert data[0] == 0
            process.stdin.write(data[1:])
        process.kill()
        await process.wait()
        await reader

    async def pass_on(self, output: asyncio.StreamReader, socket: WebSocket) -> None:
        with contextlib.suppress(WebSocketDisconnect):
            while data := await output.read(10_000):
                await socket.send_bytes(b"\1" + data)
            await socket.send_bytes(b"\3" + json.dumps({"status": "Success"}).encode())
            await socket.close()


@contextmanager
def served(fake: FakeCluster) -> Iterator[Cluster]:
    """The connection to it."""
    server = uvicorn.Server(uvicorn.Config(fake.app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the stand-in does not start")
    port = server.servers[0].sockets[0].getsockname()[1]
    configuration = client.Configuration()
    configuration.host = f"http://127.0.0.1:{port}"
    try:
        yield Cluster(configuration)
    finally:
        server.should_exit = True
        thread.join()
