"""`anprompt serve`."""

from __future__ import annotations

from dataclasses import dataclass

from .choices import Engine
from .options import RUN, AskOptions, RunOptions, check_exclusive, command, number, option

LIMITS = "Limits of a request"


@dataclass(frozen=True, kw_only=True)
class ServeOptions(RunOptions, AskOptions):
    """Options of `anprompt serve`."""

    host: str = option(
        "Address to listen at. The default is for this machine only. With 0.0.0.0 all that reach it may ask: there is "
        "no password.",
        default="127.0.0.1",
    )
    port: int = number("Port to listen at; 0 for any that is free.", min=0, max=65535, default=8000)
    engine: Engine = option(
        "auto: ONNX Runtime for ANPrompt adapters on a CPU, PyTorch otherwise. Its graph is exported once.",
        RUN,
        default="auto",
    )
    max_megabytes: int = number("Most megabytes of a request.", LIMITS, default=20)
    max_images: int = number("Most images of a request.", LIMITS, default=32)
    max_megapixels: int = number("Most million pixels of an image.", LIMITS, max=40, default=40)
    timeout: int = number("Most seconds of a request, waiting included.", LIMITS, default=60)


@command
def serve(options: ServeOptions) -> None:
    """Classify images over HTTP: a page to upload them to, and JSON.

    * `anprompt serve adapter`, and then open http://127.0.0.1:8000
    * `curl -F image=@photo.jpg http://127.0.0.1:8000/predict`
    * `curl -F images=@one.jpg -F images=@two.jpg http://127.0.0.1:8000/batch`
    * `curl http://127.0.0.1:8000/health`

    The adapter is one of `anprompt train`, or anything that `anprompt compare --save` wrote. Ctrl-C ends it.
    """
    check_exclusive(options, ("classes", "classes_file"))
    from .jobs.serve import serve_adapter

    serve_adapter(options)
