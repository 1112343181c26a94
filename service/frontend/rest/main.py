"""The REST front-end process: composition root of `convmlp rest`."""

from __future__ import annotations

import asyncio

import structlog

from service.frontend.keys import KeysUnusable
from service.frontend.process import open_front_end
from service.frontend.rest.app import create_app
from service.frontend.rest.server import serve
from service.process import EXIT_CONFIG, inherited_socket, open_listener, run_process
from service.scrape import exposition
from service.settings import Settings
from service.tracing import TracingUnavailable, open_tracing

log = structlog.get_logger(__name__)


def run_rest(settings: Settings) -> int:
    """Serve HTTP until a signal; the exit status."""
    return run_process("rest", settings, lambda stop: _serve(settings, stop))


async def _serve(settings: Settings, stop: asyncio.Event) -> int:
    try:
        listener = inherited_socket() or open_listener(settings.host, settings.http_port)
    except OSError as error:
        log.error("cannot listen", host=settings.host, port=settings.http_port, error=error.strerror)
        return EXIT_CONFIG
    try:
        with open_tracing(settings, "rest") as tracing:
            async with open_front_end(settings) as front_end:
                app = create_app(
                    front_end.engine,
                    front_end.gate,
                    settings,
                    front_end.metrics,
                    lambda: exposition(front_end.registry),
                    tracing,
                )
                host, port = listener.getsockname()[:2]
                log.info("listening", url=f"http://{host}:{port}")
                await serve(app, [listener], stop, settings.drain_timeout_ms / 1000)
    except KeysUnusable as error:
        log.error("cannot read the API keys", error=str(error))
        return EXIT_CONFIG
    except TracingUnavailable as error:
        log.error("cannot trace", error=str(error))
        return EXIT_CONFIG
    return 0
