from __future__ import annotations

import json
import subprocess
import sys

from service.frontend.api.oip.generated import grpc_predict_v2_pb2 as pb
from tests.service.frontend.api.oip.protobuf_description import told


def test_names_and_numbers_are_the_public_protocols() -> None:
    """Each message, field, enum and method is as in the description that Triton's client brings along.

    Of the service's own messages nothing may be missing; of a model's configuration a part is enough, for only this
    service fills it in.
    """
    program = [sys.executable, "-m", "tests.service.frontend.api.oip.protobuf_description"]
    output = subprocess.run(program, check=True, capture_output=True, text=True).stdout
    service, model_config = json.loads(output)
    ours = json.loads(json.dumps(told(pb.DESCRIPTOR)))
    assert service.keys() <= ours.keys()
    for name, facts in ours.items():
        if name in service:
            assert facts == service[name], name
        else:
            assert facts.items() <= model_config[name].items(), name
