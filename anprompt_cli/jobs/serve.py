"""The job of `anprompt serve`."""

from __future__ import annotations

import logging
import socket
import sys
import warnings
from importlib.util import find_spec
from typing import Any

from anprompt_peft.extras import extra, missing
from anprompt_peft.serve import Graph, export_onnx
from anprompt_peft.serve.graph import graph_path

from ..adapters import CLASSIFIER, METHOD, is_classifier, locate
from ..serve import ServeOptions
from ..text import printable
from .labelled import public_name
from .models import choose_device
from .predict import load_asked

CONNECTIONS = 100
"""Most at once; further ones are told that the service is unavailable."""


def serve_adapter(options: ServeOptions) -> None:
    """Serve until a signal ends it; running requests are answered first."""
    with extra("serve"):
        import uvicorn

        from anprompt_peft.serve.app import Limits, make_app
    with _listen(options.host, options.port) as listener:
        model, processor, engine = _load(options)
        limits = Limits(options.max_megabytes, options.max_images, options.max_megapixels, options.timeout)
        about = {"adapter": public_name(options.adapter), "engine": engine, "classes": list(model.class_names)}
        app = make_app(model, processor, about, limits, options.top_k)
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"Serving with {engine} at http://{host}:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(
            app, log_level="warning", limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=options.timeout
        )
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Return a socket before anything long begins; a client that comes too early waits."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ValueError(
            f"Nothing can listen at --host {host} --port {port}: {error.strerror}. Give another port, or --port 0 for "
            "any that is free."
        ) from error


def _load(options: ServeOptions) -> tuple[Any, Any, str]:
    """Return what `predict` takes, its image processor, and the name of the engine."""
    reason = _no_graph(options)
    if reason and options.engine == "onnx":
        raise ValueError(f"--engine onnx: {reason}. Give --engine torch.")
    model, processor = load_asked(options.adapter, options, options, options.precision if reason else "fp32")
    if reason:
        if options.engine == "auto":
            print(printable(f"Computing with PyTorch: {reason} (--engine)."), file=sys.stderr)
        return model, processor, "PyTorch"
    path = graph_path(model, processor)
    if not path.is_file():
        print(printable(f"Exporting the graph once, to {path}."), file=sys.stderr)
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # torch's own
        export_onnx(model, processor, path)
    return Graph(path), processor, "ONNX Runtime"


def _no_graph(options: ServeOptions) -> str | None:
    """Return why ONNX Runtime does not compute, if it does not."""
    if options.engine == "torch":
        return "it was asked for"
    if is_classifier(locate(options.adapter, options.revision, (METHOD, CLASSIFIER))):
        return "only ANPrompt adapters are exported"
    if choose_device(options.device).type != "cpu":
        return "there is a GPU, and ONNX Runtime computes on the CPU (--device cpu)"
    if options.precision == "bf16":
        return "the graph is float32, and --precision bf16 was asked for"
    absent = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    return missing(" and ".join(absent), "onnx") if absent else None
