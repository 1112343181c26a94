"""The thread in which a device computes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from service.worker.device_thread import DeviceThread


def test_calls_are_made_in_their_order_in_one_thread() -> None:
    """What is posted and what is submitted run one after another, in the thread of the device."""
    made: list[tuple[int, str]] = []

    def call(number: int) -> int:
        made.append((number, threading.current_thread().name))
        return number

    with DeviceThread("device") as thread:
        thread.post(lambda: call(0))
        submitted = thread.submit(call, 1)
        thread.post(lambda: call(2))
        assert submitted.result(30) == 1
    assert made == [(number, "device") for number in range(3)]


async def test_a_submitted_call_raises_in_its_caller() -> None:
    """An error belongs to who awaits the call, and the thread goes on."""
    with DeviceThread("device") as thread:
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match="invalid literal"):
            await loop.run_in_executor(thread, int, "x")
        assert await loop.run_in_executor(thread, int, "7") == 7


def test_a_cancelled_call_is_not_made() -> None:
    """A call that was cancelled before its turn never runs."""
    begin = threading.Event()
    with DeviceThread("device") as thread:
        thread.post(lambda: begin.wait(30))
        cancelled, last = thread.submit(int, "1"), thread.submit(int, "2")
        assert cancelled.cancel()
        begin.set()
        assert last.result(30) == 2
    assert cancelled.cancelled()


def test_a_closed_thread_takes_no_calls() -> None:
    """Calls made before it was closed are made; later ones are refused."""
    thread = DeviceThread("device")
    begin = threading.Event()
    thread.post(lambda: begin.wait(30))
    last = thread.submit(int, "3")
    thread.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="closed"):
        thread.submit(int, "4")
    begin.set()
    assert last.result(30) == 3


def test_the_interpreter_ends_after_the_running_call() -> None:
    """A process that ends does not cut off the device's present call, and does not wait for ever for the next one."""
    program = """
import time
from service.worker.device_thread import DeviceThread
DeviceThread("device").post(lambda: (time.sleep(0.2), print("done", flush=True)))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout == "done\n"
