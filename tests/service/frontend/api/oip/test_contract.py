from __future__ import annotations

import json
import subprocess
import sys

from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as pb
from tests.service.frontend.api.oip.protobuf_description import described


def test_names_and_numbers_are_the_public_protocols() -> None:
    """Messages, fields, enums and methods equal those of Triton's client.

    The service's own messages are complete. A model's configuration may be a part of Triton's, because only the server
    sends it."""
    program = [sys.executable, "-m", "tests.service.frontend.api.oip.protobuf_description"]
    output = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    service, model_config = json.loads(output)
    ours = json.loads(json.dumps(described(pb.DESCRIPTOR)))
    assert service.keys() <= ours.keys()
    for name, facts in ours.items():
        if name in service:
            assert facts == service[name], name
        else:
            assert facts.items() <= model_config[name].items(), name
