"""`convmlp models load|unload|reload|split` against a real front-end and a worker whose device is a fake."""

from __future__ import annotations

import json

from model.types import Task
from tests.fakes import fake_bundle, store_bundle
from tests.service.cli.convmlp_command import Completed, convmlp, url
from tests.service.frontend.rest_server import open_rest

FIRST, SECOND = "fake_classify", "fake_classify@2"


def plain(ran: Completed) -> str:
    """What a command printed on stderr, without line ends and frames."""
    return " ".join(ran.err.replace("│", " ").split())


async def test_a_fine_tune_is_rolled_out_and_back() -> None:
    """Load, a share, all requests, another fine-tune under its name, and back: each command prints the state after."""
    async with open_rest(model_control=True) as rest:

        async def models(*arguments: str) -> Completed:
            ran = await convmlp("models", *arguments, "--url", url(rest))
            assert ran.status == 0, ran.err
            return ran

        store_bundle(rest.worker.store, fake_bundle(Task.CLASSIFY, SECOND))
        ran = await models("load", SECOND)
        assert ran.lines == [f"{SECOND} is ready: classify, fp32, cpu; 0 % of the requests for {FIRST}"]
        assert ran.err == f"convmlp: loading {SECOND}\n"
        assert (await models("split", FIRST, "1:90,2:10")).lines == [
            "version  share  name             ready",
            "1         90 %  fake_classify    yes",
            "2         10 %  fake_classify@2  yes",
        ]
        ran = await models("reload", SECOND)
        assert ran.lines == [
            f"{SECOND} is ready, unchanged in the store: classify, fp32, cpu; 10 % of the requests for {FIRST}"
        ]
        store_bundle(rest.worker.store, fake_bundle(Task.CLASSIFY, SECOND, weights=b"new"), weights=b"new")
        assert (await models("reload", SECOND)).lines[0].startswith(f"{SECOND} is ready, loaded again: ")
        await models("split", FIRST, "2")
        assert (await models("unload", f"{FIRST}@1")).lines == [f"{FIRST} is unloaded"]
        assert json.loads((await models("split", FIRST, "--json")).out) == {
            "name": FIRST,
            "versions": [
                {
                    "name": SECOND,
                    "version": "2",
                    "task": "classify",
                    "ready": True,
                    "device": "cpu",
                    "precision": "fp32",
                    "share": 1.0,
                }
            ],
        }


async def test_what_is_refused_is_printed() -> None:
    """The service's reason on stderr and exit status 1; a malformed flag is 2; no traceback."""
    async with open_rest() as rest:
        refused = {
            ("load", SECOND): (1, "its operator can allow it with the setting model_control"),
            ("reload", SECOND): (1, "there is no model 'fake_classify@2'; served: fake_classify, "),
            ("split", "nonesuch"): (1, "there is no model 'nonesuch'; served: fake_classify, "),
            ("split", FIRST, "1:90"): (2, "the percentages sum to 90; expected 100"),
            ("unload", "../etc/passwd"): (2, "expected 1 to 64 of a-z"),
        }
        for arguments, (status, reason) in refused.items():
            ran = await convmlp("models", *arguments, "--url", url(rest))
            assert (ran.status, reason in plain(ran), ran.out) == (
                status,
                True,
                b"",
            ), ran.err
            assert "Traceback" not in ran.err
        nobody = await convmlp("models", "load", FIRST, "--url", "http://127.0.0.1:9")
        assert (nobody.status, "cannot connect to http://127.0.0.1:9: connection refused; " in nobody.err) == (1, True)
        wrong = await convmlp("models", "load", FIRST, "--url", "grpc://127.0.0.1:9")
        assert (wrong.status, "models are changed over REST" in plain(wrong)) == (
            2,
            True,
        )
