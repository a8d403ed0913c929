"""What vLLM loads: the entry points. They only register; the work is in the other modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vauban.hosts.vllm.runtime import configure_logging, open_runtime

if TYPE_CHECKING:
    from argparse import Namespace

    from fastapi import FastAPI
    from starlette.datastructures import State


def register() -> None:
    """`vllm.general_plugins`: run in every process, perhaps more than once.

    Its first run, in the parent of all, makes the secret that the children inherit.
    """
    configure_logging()
    open_runtime()


def register_scripted_target() -> None:
    """`vllm.general_plugins`: makes the red team's scripted target known; it is loaded by name."""
    from vllm import ModelRegistry

    from vauban.scripted import ARCHITECTURE

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        where = "vauban.hosts.vllm.scripted_model:ScriptedForCausalLM"
        ModelRegistry.register_model(ARCHITECTURE, where)


class GuardEndpointPlugin:
    """`vllm.endpoint_plugins`: puts the front half into the API server.

    Loaded only when `VLLM_PLUGINS` names it. Raising here stops the server.
    """

    name = "vauban"
    required_tasks = None

    def __init__(self) -> None:
        from vauban.hosts.vllm.front import Front

        self._front = Front()

    def attach_router(self, app: FastAPI) -> None:
        from vauban.hosts.vllm.middleware import GuardMiddleware

        self._front.configure(app.state.args)
        app.add_middleware(GuardMiddleware, front=self._front)

    async def init_state(self, engine_client: Any, state: State, args: Namespace) -> None:  # noqa: ARG002
        if engine_client is None:
            raise RuntimeError("vauban does not guard vLLM's render-only server")
        self._front.open(state)


def endpoint_plugin() -> GuardEndpointPlugin:
    return GuardEndpointPlugin()
