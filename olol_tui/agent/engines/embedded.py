"""The embedded engine: llama.cpp inside Python (xllamacpp), in a child process of its own.

It needs neither Ollama nor a compiler nor a GPU, and speaks llama-server's dialect. The
child is `agent embedded …`; a crash of the library ends the child, never the agent.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from importlib import util
from pathlib import Path
from typing import Any

from ..errors import AgentError, EngineError
from ..gguf import read_header
from ..spec import LOOPBACK, Spec
from ..templates import jinja
from .base import Context, EngineKind, Launch, health, model_file
from .llama_server import is_embedding, runner_loaded

_PACKAGE = "xllamacpp"
_EXIT_GRACE_S = 8
"""A request in progress may hold the library's clean-up for long; the kernel cleans too."""


class Embedded(EngineKind):
    name = "embedded"
    runner = True

    def launch(self, spec: Spec, port: int, context: Context, *, plain: bool = False) -> Launch:
        installed = installed_version()
        if installed is None:
            raise EngineError(
                f"{_PACKAGE} is not installed for {sys.executable}",
                f"{sys.executable} -m pip install {_PACKAGE}",
            )
        path = model_file(spec)
        argv = [*context.self_argv, "embedded", "--model", str(path), "--port", str(port)]
        argv += ["--host", spec.bind] if spec.listen else []
        argv += ["--ctx", str(spec.num_ctx), "--slots", str(spec.slots)]
        argv += ["--threads", str(max(1, context.cpus))]
        template = jinja(spec.model.chat_template) if spec.model else ""
        if template:
            argv += ["--chat-template", template]
        if spec.model is not None:
            argv += ["--alias", spec.model.name]
        return Launch((*argv, *spec.args), {**context.environ, **spec.env}, version=installed)

    async def ready(self, spec: Spec, port: int) -> str | None:
        return "" if await health(port) else None

    async def loaded(self, spec: Spec, port: int, timeout_s: float) -> list[dict[str, Any]]:
        # The wheel computes on the CPU whatever device the engine is shown under.
        return await runner_loaded(spec, await health(port, timeout_s), on_gpu=False)


def installed_version() -> str | None:
    """Version of the library without loading its 100 MB; None when it is not installed."""
    if util.find_spec(_PACKAGE) is None:
        return None
    # Costs every agent 9 ms of its start, and most have no such package.
    from importlib import metadata

    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return ""


def main(argv: list[str]) -> int:
    """Serve one GGUF until SIGTERM."""
    parser = argparse.ArgumentParser(prog="agent embedded", description=main.__doc__)
    parser.add_argument("--model", required=True, help="path of the GGUF file")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default=LOOPBACK)
    parser.add_argument("--ctx", type=int, default=4096, help="context of one slot, tokens")
    parser.add_argument("--slots", type=int, default=1, help="requests at once")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--chat-template", default="", help="Jinja text that replaces the GGUF's")
    parser.add_argument("--alias", default="", help="model name in replies")
    options = parser.parse_args(argv)
    stops = {signal.SIGTERM, signal.SIGINT}
    # Before the library starts threads: they inherit the mask, so only sigwait takes these.
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)
    try:
        read_header(options.model)
        server = _serve(options)
    except (AgentError, OSError, RuntimeError) as error:
        print(f"cannot serve {options.model}: {error}", file=sys.stderr)
        return 1
    print(f"serving {options.model} at {server.listening_address}", file=sys.stderr, flush=True)
    signal.sigwait(stops)
    signal.alarm(_EXIT_GRACE_S)
    del server
    return 0


def _serve(options: argparse.Namespace) -> Any:
    import xllamacpp

    cores = len(os.sched_getaffinity(0))
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.hostnames = [options.host]
    params.port = options.port
    params.n_parallel = options.slots
    params.n_ctx = options.ctx * options.slots
    params.cpuparams.n_threads = min(options.threads or cores, cores)
    params.cpuparams_batch.n_threads = min(options.threads or cores, cores)
    params.use_jinja = True
    params.ui = False
    params.endpoint_metrics = True
    # Its default lets any web page in the operator's browser read the answers.
    params.cors_origins = f"http://127.0.0.1:{options.port}"
    params.warmup = False
    # Completions and embeddings from one server: with a pooling type set, llama-server
    # pools only the requests that ask for embeddings.
    params.embedding = True
    if not is_embedding(Path(options.model)):
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # An embedding must fit one physical batch.
    params.n_ubatch = min(max(512, options.ctx), 2048)
    params.n_batch = max(2048, params.n_ubatch)
    if options.chat_template:
        params.chat_template = options.chat_template
    if options.alias:
        params.model_alias = {options.alias}
    return xllamacpp.Server(params)
