"""The ASGI application: routes for what the model offers, the page, and the guard before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from lcc.core.errors import LccError
from lcc.serving.endpoints import (
    ChatEndpoint,
    ClassifyEndpoint,
    CompletionsEndpoint,
    EmbeddingsEndpoint,
    TranslateEndpoint,
)
from lcc.serving.engine_thread import EngineThread
from lcc.serving.http import Guard
from lcc.serving.model import Served
from lcc.serving.openapi import WRITES, openapi
from lcc.serving.protocol import ClientGone, Refusal, on_fault, on_gone, on_http, on_refusal

ENDPOINTS: dict[str, Callable[[Served], Any]] = {
    "chat": ChatEndpoint,
    "completions": CompletionsEndpoint,
    "embeddings": EmbeddingsEndpoint,
    "classify": ClassifyEndpoint,
    "translate": TranslateEndpoint,
}
PAGE = Path(__file__).parent / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def application(served: Served, key: str | None, *, failed: Callable[[BaseException], None]) -> ASGIApp:
    """The ASGI application; `failed` is called when the engine cannot go on."""

    def fail(error: BaseException) -> None:
        served.is_well = False
        failed(error)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        options = served.options
        engine_thread = EngineThread(
            served.session, asyncio.get_running_loop(), options.queue, options.queue_seconds, failed=fail
        )
        await served.open(engine_thread)
        yield
        await served.close()

    app: ASGIApp = Starlette(
        routes=_routes(served, has_key=key is not None),
        lifespan=lifespan,
        exception_handlers={
            Refusal: on_refusal,
            ClientGone: on_gone,
            HTTPException: on_http,
            LccError: on_fault,
            Exception: on_fault,
        },
    )
    app = Guard(app, served, key)
    if served.options.origins:
        app = CORSMiddleware(
            app,
            allow_origins=list(served.options.origins),
            allow_methods=["GET", "POST"],
            max_age=600,
            allow_headers=["authorization", "content-type"],
        )
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

    routes = [
        Route("/v1/models", models),
        Route("/healthz", health),
        Route("/metrics", metrics),
        Route("/openapi.json", described),
    ]
    for offer in sorted(served.offers):
        routes.append(Route(WRITES[offer][0], ENDPOINTS[offer](served).respond, methods=["POST"]))
    return routes + (page_routes(served) if served.options.page else [])


# The built-in page: three files, nothing from elsewhere, and a policy that allows nothing else.


def page_routes(served: Served) -> list[Route]:
    """The page's files, and what it asks first: what the model can do."""

    async def facts(request: Request) -> Response:
        return JSONResponse(
            {
                "name": served.name,
                "engine": served.engine,
                "offers": sorted(served.offers),
                "fields": list(served.fields),
                "context": served.context,
                "max_tokens": served.options.max_tokens,
            }
        )

    return [*(_file(path, *what) for path, what in FILES.items()), Route("/page.json", facts)]


def _file(path: str, name: str, kind: str) -> Route:
    content = (PAGE / name).read_bytes()

    async def send(request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(content, media_type=kind, headers=headers)

    return Route(path, send)
