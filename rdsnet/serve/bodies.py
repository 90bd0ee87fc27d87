"""What is sent: one image, as the body itself or as a file of a form, up to a number of bytes."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import PurePath, PureWindowsPath
from typing import BinaryIO

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive

from rdsnet.data.findings import printable

_NAME = "image"  # of an image that comes without one
_LONGEST_NAME = 100  # characters of a name that messages and results repeat
_FIELDS = 8  # of a form, beside the file; they are ignored


async def received(request: Request, max_mb: float, seconds: float) -> tuple[str, BinaryIO]:
    """The name of the image that a request holds, without folders, and a file without a name.

    Args:
        max_mb: MiB that the body may have.
        seconds: in which it has to be there.

    Raises:
        HTTPException: 413 where the body is larger, 408 where it is slower, 400 where it is no form
            of one file though it says so, or empty.
        starlette.requests.ClientDisconnect: nobody waits for the answer any more.
    """
    most = int(max_mb * 2**20)
    too_large = HTTPException(
        413,
        f"The body has more than {max_mb:g} MB. Send a smaller file, or start this with a "
        "larger --max-upload-mb.",
    )
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise too_large
    limited = Request(request.scope, _limited(request.receive, most, too_large))
    file = tempfile.TemporaryFile()
    try:
        name = await asyncio.wait_for(_write(limited, file), seconds)
        if not file.tell():
            raise HTTPException(400, "The image is empty: send the content of an image file.")
        file.seek(0)
    except asyncio.TimeoutError:
        file.close()
        raise HTTPException(408, f"The body was not there after {seconds:g} seconds.") from None
    except BaseException:
        file.close()
        raise
    return name, file


def _limited(receive: Receive, most: int, error: HTTPException) -> Receive:
    """``receive``, but an error after so many bytes: a body need not be as long as announced."""
    so_far = 0

    async def limited() -> Message:
        nonlocal so_far
        message = await receive()
        so_far += len(message.get("body", b""))
        if so_far > most:
            raise error
        return message

    return limited


async def _write(request: Request, file: BinaryIO) -> str:
    """Put the image into a file; its name."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        async for chunk in request.stream():
            file.write(chunk)
        return _NAME
    async with request.form(max_files=1, max_fields=_FIELDS) as form:
        files = [value for value in form.values() if isinstance(value, UploadFile)]
        if not files:
            fields = ", ".join(f"'{_shown(name)}'" for name in form) or "none"
            raise HTTPException(
                400,
                f"The form has no file (its fields: {fields}). Send one, such as by "
                "curl -F image=@photo.jpg.",
            )
        await asyncio.to_thread(shutil.copyfileobj, files[0].file, file)
        return _shown(files[0].filename or "") or _NAME


def _shown(name: str) -> str:
    """A file's name without folders of any system, on one line and of bounded length."""
    return printable(PureWindowsPath(PurePath(name).name).name)[:_LONGEST_NAME]
