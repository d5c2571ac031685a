"""The application: routes for what the model offers, guarded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lcc.core.errors import LccError
from lcc.serve.chat import Chat
from lcc.serve.completions import Completions
from lcc.serve.describing import WRITES, openapi
from lcc.serve.embeddings import Embeddings
from lcc.serve.guarding import Guard
from lcc.serve.page import page_routes
from lcc.serve.refusals import Gone, Refusal, on_fault, on_gone, on_http, on_refusal
from lcc.serve.served import Served
from lcc.serve.tasks import Classify, Translate
from lcc.serve.turning import Turner

ENDPOINTS: dict[str, Callable[[Served], Any]] = {
    "chat": Chat, "completions": Completions, "embeddings": Embeddings, "classify": Classify,
    "translate": Translate,
}  # fmt: skip


def application(
    served: Served, key: str | None, *, failed: Callable[[BaseException], None]
) -> ASGIApp:
    """The ASGI application; `failed` is called when the engine cannot go on."""

    def fail(error: BaseException) -> None:
        served.is_well = False
        failed(error)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        options = served.options
        turner = Turner(served.session, asyncio.get_running_loop(), options.queue,
                        options.queue_seconds, failed=fail)  # fmt: skip
        await served.open(turner)
        yield
        await served.close()

    app: ASGIApp = Starlette(
        routes=_routes(served, has_key=key is not None),
        lifespan=lifespan,
        exception_handlers={Refusal: on_refusal, Gone: on_gone, HTTPException: on_http,
                            LccError: on_fault, Exception: on_fault},
    )  # fmt: skip
    app = Guard(app, served, key)
    if served.options.origins:
        app = CORSMiddleware(app, allow_origins=list(served.options.origins),
                             allow_methods=["GET", "POST"], max_age=600,
                             allow_headers=["authorization", "content-type"])  # fmt: skip
    return app


def _routes(served: Served, *, has_key: bool) -> list[Route]:
    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [served.model_facts()]})

    async def health(request: Request) -> Response:
        status = "ok" if served.is_well else "failed"
        return JSONResponse({"status": status}, 200 if served.is_well else 503)

    async def metrics(request: Request) -> Response:
        return Response(served.meters.text(), media_type="text/plain; version=0.0.4")

    document = bytes(JSONResponse(openapi(served, has_key=has_key)).body)

    async def described(request: Request) -> Response:
        return Response(document, media_type="application/json")

    routes = [Route("/v1/models", models), Route("/healthz", health), Route("/metrics", metrics),
              Route("/openapi.json", described)]  # fmt: skip
    for offer in sorted(served.offers):
        routes.append(Route(WRITES[offer][0], ENDPOINTS[offer](served).respond, methods=["POST"]))
    return routes + (page_routes(served) if served.options.page else [])
