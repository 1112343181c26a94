"""One image's turn, a unary call or one message of a stream; and what a call says of itself beside its messages."""

from __future__ import annotations

from dataclasses import dataclass

from convmlp.v1 import vision_pb2 as pb
from service.errors import BadParameter
from service.frontend.exchange import SANE_ID, Exchange
from service.frontend.gate import Caller, Gate, host_of
from service.frontend.rpc.errors import Context
from service.logs import request_id
from service.spans import TraceContext, received_context

MAX_ID = 128


@dataclass(slots=True)
class Turn(Exchange):
    """`given_id` is that of the request's message; the logs know the turn by it if it is fit for them."""

    given_id: str = ""

    def name(self, given_id: str) -> None:
        """Take up the message's own id.

        Raises:
            BadParameter: it is too long.
        """
        self.given_id = given_id[:MAX_ID]
        if len(given_id) > MAX_ID:
            raise BadParameter(f"parameter 'id' has {len(given_id)} characters; expected at most {MAX_ID}", "id")
        if SANE_ID.fullmatch(given_id):
            self.request_id = given_id
            request_id.set(given_id)

    @property
    def reply_id(self) -> str:
        return self.given_id or self.request_id

    def timings_message(self) -> pb.Timings:
        return pb.Timings(**{f"{stage}_ms": duration for stage, duration in self.durations_ms().items()})


def given_id_of(context: Context) -> str:
    return _metadata(context, "x-request-id") or ""


def context_of(context: Context) -> TraceContext:
    """That of the caller's trace."""
    return received_context(_all_metadata(context, "traceparent"), _all_metadata(context, "tracestate"))


def timeout_ms_of(context: Context) -> int | None:
    """What is left of the call's deadline; None where it has none."""
    seconds: float | None = context.time_remaining()
    return None if seconds is None else int(seconds * 1000)


def caller_of(context: Context, gate: Gate) -> Caller:
    """Raises Unauthenticated."""
    return gate.identify(_metadata(context, "authorization"), host_of(context.peer()))


def _metadata(context: Context, key: str) -> str | None:
    return next(iter(_all_metadata(context, key)), None)


def _all_metadata(context: Context, key: str) -> list[str]:
    return [value for name, value in context.invocation_metadata() or () if name == key and isinstance(value, str)]
