"""`convmlp health worker`: what the worker says of itself to whoever greets it."""

from __future__ import annotations

import re

import zmq

from service.cli.unhealthy import TIMEOUT_S, Unhealthy
from service.settings import Settings
from service.wire.messages import PROTOCOL, Hello, MalformedMessage, Phase, State, decode_to_front_end, encode

MAX_SILENCE_S = 30.0
"""How long ago the device may have answered last. An idle worker asks it every few seconds."""
START_S = 600.0
"""How long a worker may take to open its device, load its models and have them prove themselves."""
TAKE_IN_S = 120.0
"""How long it may take to put a further model on the device, beyond what a batch may take."""


def ask_worker(settings: Settings, *, live: bool) -> None:
    """Raises Unhealthy where the worker is not fit to answer for all of its models, or with `live` where only a new
    process would help."""
    state = state_of_worker(settings)
    if live:
        _require_sign_of_life(state, settings.batch_timeout_ms / 1000)
        return
    if state.phase is not Phase.READY:
        raise Unhealthy(state.reason)
    unproven = ", ".join(model.name for model in state.models if not model.ready)
    if unproven:
        raise Unhealthy(f"these models do not give their committed answers: {unproven}")
    if state.silent_s > MAX_SILENCE_S:
        raise Unhealthy(f"the device has not answered for {state.silent_s:.0f} s")


def _require_sign_of_life(state: State, batch_timeout_s: float) -> None:
    """That the worker answered is half of it. One whose batch hangs ends by itself, unless that end hangs as well; one
    whose device hangs as it takes in a model does not."""
    limit_s = START_S if state.phase is Phase.STARTING else batch_timeout_s + TAKE_IN_S
    if state.silent_s > limit_s:
        raise Unhealthy(f"the device has not answered for {state.silent_s:.0f} s")


def state_of_worker(settings: Settings) -> State:
    """The worker's answer to a greeting. Raises Unhealthy where there is none."""
    if not settings.worker_address:
        raise Unhealthy("--worker-address is needed, or CONVMLP_WORKER_ADDRESS")
    # One that listens everywhere listens here as well.
    address = re.sub(r"^tcp://(\*|0\.0\.0\.0)", "tcp://127.0.0.1", settings.worker_address[0])
    with zmq.Context() as context, context.socket(zmq.DEALER) as wire:
        wire.linger = 0
        wire.connect(address)
        wire.send(encode(Hello(PROTOCOL, ())))
        if not wire.poll(int(TIMEOUT_S * 1000)):
            raise Unhealthy(f"no answer at {address} within {TIMEOUT_S:g} s")
        try:
            answer = decode_to_front_end(wire.recv_multipart()[0])
        except MalformedMessage as error:
            raise Unhealthy(f"what is at {address} does not speak this protocol: {error}") from None
    if not isinstance(answer, State):
        raise Unhealthy(f"the worker answers {type(answer).__name__} to a greeting")
    return answer
