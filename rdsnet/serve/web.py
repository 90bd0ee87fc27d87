"""What is answered where: ``/predict``, ``/health``, ``/metrics``, and the page ``/docs``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from pydantic import WithJsonSchema
from starlette.requests import ClientDisconnect
from swagger_ui_bundle import swagger_ui_path

from rdsnet import __version__
from rdsnet.prediction.uploads import Refusal, RefusedUploadError
from rdsnet.serve.answers import FORMATS, accepted
from rdsnet.serve.bodies import received
from rdsnet.serve.metrics import CONTENT_TYPE, Counted
from rdsnet.serve.service import GoneError, OverloadedError, Service

PATH = "/predict"
_ASSETS = "/docs-assets"
_STATUS = {Refusal.NO_IMAGE: 415, Refusal.TOO_LARGE: 413, Refusal.UNREADABLE: 422}
_GONE = 499  # as nginx calls it: nobody reads this answer, metrics count it
_WORDS = {"type": "object", "properties": {"detail": {"type": "string"}}}

Format = Enum("Format", {name: name for name in FORMATS})
# FastAPI writes a wish that may be missing as a choice with null, which the page does not know.
ScoreQuery = Annotated[
    float | None,
    Query(ge=0, le=1, description="Leave out objects below; without: the model's best."),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
]
ClassesQuery = Annotated[
    list[str],
    Query(description="Keep only these classes: names or category ids, also with commas."),
]
FormatQuery = Annotated[
    Format | None,
    Query(description="Of the answer; without it the header Accept decides."),
    WithJsonSchema({"type": "string", "enum": list(FORMATS), "default": next(iter(FORMATS))}),
]
_FILE = {"type": "string", "format": "binary"}
_OPENAPI = {
    "requestBody": {
        "required": True,
        "description": "An image file, as a file of a form or as it is.",
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "properties": {"image": _FILE}}},
            "application/octet-stream": {"schema": _FILE},
        },
    }
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The objects, or the image with them drawn.",
        "content": {format.media_type: {} for format in FORMATS.values()},
    },
    **{
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": _WORDS}},
        }
        for status in (400, 406, 408, 413, 415, 422, 503)
    },
}


def build_app(service: Service, max_upload_mb: float, max_upload_seconds: float) -> FastAPI:
    """The service as an ASGI app, which closes it when it ends.

    Args:
        max_upload_mb: larger bodies are refused.
        max_upload_seconds: so are those that are not there after so long.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    app = FastAPI(
        title="RDSNet",
        version=__version__,
        summary="Post an image, get its objects.",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.openapi_version = "3.0.3"  # what the page reads
    app.mount(_ASSETS, StaticFiles(directory=swagger_ui_path))
    app.add_middleware(Counted, metrics=service.metrics, path=PATH)
    _add_errors(app)

    @app.post(PATH, responses=_ANSWERS, response_class=Response, openapi_extra=_OPENAPI)
    async def predict(
        request: Request,
        score_threshold: ScoreQuery = None,
        classes: ClassesQuery = [],  # noqa: B006 (FastAPI copies it)
        format: FormatQuery = None,
    ) -> Response:
        """The objects of an image."""
        chosen = format.value if format else accepted(request.headers.get("accept", "*/*"))
        if chosen is None:
            known = ", ".join(kind.media_type for kind in FORMATS.values())
            raise HTTPException(406, f"Accept takes none of {known}. Name one, or */*.")
        try:
            wishes = service.thresholds(score_threshold), service.classes(classes)
        except ValueError as error:
            raise HTTPException(422, str(error)) from None
        with service.admitted():
            name, stream = await received(request, max_upload_mb, max_upload_seconds)
            content, headers = await service.answer(
                name, stream, chosen, *wishes, request.is_disconnected
            )
        headers["X-Content-Type-Options"] = "nosniff"
        return Response(content, headers=headers, media_type=FORMATS[chosen].media_type)

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 as long as the model answers; 503 where it has failed again and again."""
        content = {
            "status": "ok" if service.is_well else "failing",
            "version": __version__,
            "classes": service.predictor.class_names,
            "inside": service.inside,
            "max_waiting": service.max_waiting,
        }
        return JSONResponse(content, 200 if service.is_well else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="RDSNet",
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon-32x32.png",
        )

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/docs")

    return app


def _add_errors(app: FastAPI) -> None:
    """Errors as {"detail": a sentence}, with the status that belongs to them."""

    @app.exception_handler(RefusedUploadError)
    async def refused(request: Request, error: RefusedUploadError) -> Response:
        return JSONResponse({"detail": str(error)}, _STATUS[error.refusal])

    @app.exception_handler(OverloadedError)
    async def overloaded(request: Request, error: OverloadedError) -> Response:
        headers = {"Retry-After": str(error.seconds)}
        return JSONResponse({"detail": str(error)}, 503, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        mistakes = (f"{e['loc'][-1]}: {e['msg']}, not {e['input']!r}" for e in error.errors())
        return JSONResponse({"detail": "; ".join(mistakes)}, 422)

    @app.exception_handler(ClientDisconnect)
    @app.exception_handler(GoneError)
    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=_GONE)
