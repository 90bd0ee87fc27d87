"""Who asks the service: several in a process, or many over the network."""

from __future__ import annotations

import asyncio

import httpx
from helpers.hanging import HANG

from rdsnet.serve.service import Service
from rdsnet.serve.web import build_app


async def all_answers(service: Service, requests: list[dict], **limits) -> list[httpx.Response]:
    """The answers to requests, arguments of ``httpx.post``, that all come at the same moment."""
    settings = {"max_upload_mb": 0.5, "max_upload_seconds": HANG, **limits}
    transport = httpx.ASGITransport(build_app(service, **settings))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://service", timeout=HANG
    ) as client:
        return await asyncio.gather(*(client.request(**request) for request in requests))


def ask(service: Service, **request) -> httpx.Response:
    """The answer to one request."""
    return asyncio.run(all_answers(service, [request]))[0]


def posted(content: bytes, url: str = "/predict", **more) -> dict:
    """A request with an image as it is."""
    return {"method": "POST", "url": url, "content": content, **more}


def as_form(content: bytes, name: str = "street.png", url: str = "/predict", **more) -> dict:
    """A request with an image as the file of a form."""
    return {"method": "POST", "url": url, "files": {"image": (name, content)}, **more}
