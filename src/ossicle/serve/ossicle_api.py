"""The endpoints beyond OpenAI's API: models, health, metrics, and what the page shows besides."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from ossicle.serve.errors import RequestError
from ossicle.serve.service import Service
from ossicle.serve.sse import whole

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Model(BaseModel):
    """A model that can be asked."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "ossicle"


class Models(BaseModel):
    """All models of the server."""

    object: str = "list"
    data: list[Model]


class Health(BaseModel):
    """State of the server."""

    status: str


def router(service: Service) -> APIRouter:
    """Return the endpoints."""
    routes = APIRouter()

    def model() -> Model:
        return Model(id=service.settings.name, created=service.created)

    @routes.get("/v1/models", tags=["models"])
    async def models() -> Models:
        """List the model of this server."""
        return Models(data=[model()])

    @routes.get("/v1/models/{name}", tags=["models"])
    async def one_model(name: str) -> Model:
        """Describe a model."""
        service.check_model(name)
        return model()

    @routes.get("/health", tags=["server"])
    async def health() -> Health:
        """Return 200 while the server takes requests, else 503."""
        if service.engine.stopping or not service.engine.is_alive:
            raise RequestError("the server is stopping", 503, code="stopping")
        return Health(status="ok")

    @routes.get("/metrics", tags=["server"], response_class=Response, responses={200: {"content": {METRICS_TYPE: {}}}})
    async def metrics() -> Response:
        """Return counters for Prometheus."""
        return Response(service.metrics.text(), media_type=METRICS_TYPE)

    _add_analysis(routes, service)
    return routes


def _add_analysis(routes: APIRouter, service: Service) -> None:
    @routes.post("/ossicle/analysis", tags=["page"], response_class=Response)
    async def analysis(request: Request, file: Annotated[UploadFile, File()], text: Annotated[str, Form()]) -> Response:
        """Return which speech token is which word, and how similar speech and text are in each layer."""
        service.engine.check_room()
        if service.remote is not None or find_spec("ossicle.serve.analysis") is None:
            raise RequestError("this server does not look into its LLM", 404, code="no_analysis")
        from ossicle.serve.analysis import analyse  # not needed to answer

        waveform = await service.uploads.read(await file.read(), "file")

        def run() -> dict[str, Any]:
            return analyse(service.model, waveform.numpy(), text)

        found = await whole(service, request, lambda: service.call(run, service.deadline()))
        return JSONResponse(found)

    @routes.get("/ossicle/examples", tags=["page"])
    async def examples() -> dict[str, list[dict[str, str]]]:
        """List sentences that the server can speak, for people without a microphone."""
        from ossicle.serve.examples import available

        return {"data": [{"id": name, "text": text} for name, text in available().items()]}

    @routes.get("/ossicle/examples/{name}.wav", tags=["page"], response_class=Response)
    def example(name: str) -> Response:
        """Return such a sentence as a WAV file."""
        from ossicle.serve.examples import available, spoken

        if name not in available():
            raise RequestError("there is no such example", 404)
        return Response(spoken(name), media_type="audio/wav")
