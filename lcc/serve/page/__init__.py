"""The built-in page: three files, nothing from elsewhere, and a policy that allows nothing else."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lcc.serve.served import Served

HERE = Path(__file__).parent
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
          "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")  # fmt: skip
FILES = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"),
         "/page.js": ("page.js", "text/javascript")}  # fmt: skip


def page_routes(served: Served) -> list[Route]:
    """The page's files, and what it asks first: what the model can do."""

    async def facts(request: Request) -> Response:
        return JSONResponse({"name": served.name, "engine": served.engine,
                             "offers": sorted(served.offers), "fields": list(served.fields),
                             "context": served.context,
                             "max_tokens": served.options.max_tokens})  # fmt: skip

    return [*(_file(path, *what) for path, what in FILES.items()), Route("/page.json", facts)]


def _file(path: str, name: str, kind: str) -> Route:
    content = (HERE / name).read_bytes()

    async def send(request: Request) -> Response:
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return Response(content, media_type=kind, headers=headers)

    return Route(path, send)
