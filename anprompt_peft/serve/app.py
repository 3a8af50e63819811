"""A web server for one model: JSON for one image, for several and about its health, and a page to upload images to."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from ..data.images import FORMATS, MAX_PIXELS
from ..extras import extra
from ..report.page import render
from .classify import Prediction, predict

with extra("serve"):
    from fastapi import FastAPI, Request, UploadFile
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.exceptions import HTTPException

BATCH = 8
ONE, SEVERAL, PAGE = "/predict", "/batch", "/"
NEEDED = {
    ONE: "one file in the form field image: curl -F image=@photo.jpg",
    SEVERAL: "files in the form field images: curl -F images=@one.jpg -F images=@two.jpg",
    PAGE: "image files: choose at least one",
}


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes:
        megabytes (`int`): of its body.
        images (`int`): in it.
        megapixels (`int`): of each image.
        seconds (`int`): from its first byte to the answer.
    """

    megabytes: int = 20
    images: int = 32
    megapixels: int = MAX_PIXELS // 10**6
    seconds: int = 60


class RefusedError(ValueError):
    """A request that is not answered, with its HTTP status; the message says what is allowed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def make_app(
    model: Any, processor: Any, about: dict[str, Any], limits: Limits | None = None, top_k: int = 5
) -> FastAPI:
    """Return the server's application, for uvicorn or another ASGI server. Requests are computed one after the other.

    Args:
        model (`PeftModel`, `AdaptedModel`, `CLIPClassifier` or `Graph`): what [`predict`] takes.
        processor (`CLIPProcessor` or CLIP image processor): the model's.
        about (`dict`): plain values that `/health` and the page show.
        limits (`Limits`, *optional*): of a request.
        top_k (`int`): classes in an answer, the most likely first.
    """
    limits, pool = limits or Limits(), ThreadPoolExecutor(1, thread_name_prefix="anprompt-serve")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown(cancel_futures=True)

    app = FastAPI(title="anprompt serve", docs_url=None, redoc_url=None, lifespan=lifespan)

    async def classify(uploads: Sequence[UploadFile]) -> list[Prediction]:
        if len(uploads) > limits.images:
            raise RefusedError(
                413, f"{len(uploads)} images are too many. Send at most {limits.images} (--max-images)."
            )
        files = [await _content(upload) for upload in uploads]
        return await asyncio.get_running_loop().run_in_executor(pool, lambda: list(ranked(files)))

    def ranked(files: Sequence[io.BytesIO]) -> Iterable[Prediction]:
        errors = [_too_large(file, limits.megapixels) for file in files]
        rest = [file for file, error in zip(files, errors, strict=True) if not error]
        found = predict(model, rest, processor, top_k=top_k, batch_size=BATCH)
        for file, error in zip(files, errors, strict=True):
            yield Prediction(file.name, error=error) if error else next(found)

    def page(status: int = 200, error: str = "", results: Sequence[Prediction] = ()) -> Response:
        text = render("serve.html", title="Classify images", about=about, error=error, results=results, limits=limits)
        return HTMLResponse(text, status)

    def refuse(request: Request, status: int, message: str) -> Response:
        return page(status, message) if request.url.path == PAGE else JSONResponse({"error": message}, status)

    @app.middleware("http")
    async def limit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            async with asyncio.timeout(limits.seconds):
                if refused := _wrong_size(request, limits.megabytes):
                    async for _ in request.stream():  # else the sender may not see the answer
                        pass
                    return refuse(request, refused.status, str(refused))
                return await call_next(request)
        except TimeoutError:
            text = f"This took more than {limits.seconds} s (--timeout). Send fewer images at once, or try later."
            return refuse(request, 503, text)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return refuse(request, error.status, str(error))

    @app.exception_handler(RequestValidationError)
    async def not_understood(request: Request, _: RequestValidationError) -> Response:
        return refuse(request, 400, f"{request.url.path} needs {NEEDED[request.url.path]}.")

    @app.exception_handler(HTTPException)
    async def no_such_page(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path}: {error.detail}. There are POST {ONE} and {SEVERAL}, GET /health."
        return refuse(request, error.status_code, text)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return refuse(request, 500, f"The server failed with {type(error).__name__}. Its log says more.")

    @app.post(ONE)
    async def one(image: UploadFile) -> dict[str, Any]:
        (found,) = await classify([image])
        if found.error:
            raise RefusedError(400, found.error)
        return _record(found)

    @app.post(SEVERAL)
    async def several(images: list[UploadFile]) -> dict[str, Any]:
        return {"results": [_record(found) for found in await classify(images)]}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", **about, "limits": asdict(limits)}

    @app.get(PAGE, include_in_schema=False)
    async def empty() -> Response:
        return page()

    @app.post(PAGE, include_in_schema=False)
    async def filled(images: list[UploadFile]) -> Response:
        return page(results=await classify(images))

    return app


def _wrong_size(request: Request, megabytes: int) -> RefusedError | None:
    """Return the error of a request whose body is too large, or of unknown size."""
    length = request.headers.get("content-length")
    if request.method == "POST" and length is None:
        return RefusedError(411, "The request does not say how long it is. Send the header Content-Length.")
    if length is not None and int(length) > megabytes * 10**6:
        size = f"{int(length) / 10**6:.1f} MB"
        return RefusedError(413, f"{size} are too much. Send at most {megabytes} MB (--max-megabytes) at once.")
    return None


async def _content(upload: UploadFile) -> io.BytesIO:
    """Return an uploaded file in memory, with its name."""
    file = io.BytesIO(await upload.read())
    file.name = upload.filename
    if not file.getbuffer().nbytes:
        raise RefusedError(400, f"{file.name!r} is empty. Send an image file.")
    return file


def _too_large(file: io.BytesIO, megapixels: int) -> str | None:
    """Return what is wrong with an image of too many pixels, by its header; other errors are left to [`predict`]."""
    try:
        with Image.open(io.BytesIO(file.getbuffer()), formats=FORMATS) as image:
            pixels = image.width * image.height
    except Exception:  # as Pillow's readers raise
        return None
    if pixels <= megapixels * 10**6:
        return None
    return f"{file.name} has {pixels:,} pixels. Send at most {megapixels} million (--max-megapixels)."


def _record(found: Prediction) -> dict[str, Any]:
    if found.error:
        return {"image": found.path, "error": found.error}
    return {
        "image": found.path,
        "predictions": [{"class": name, "probability": share} for name, share in found.ranking],
    }
