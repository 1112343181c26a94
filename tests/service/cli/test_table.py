from __future__ import annotations

import pytest

from convmlp_client.geometry import ImageSize
from convmlp_client.results import Classification, Label, Meta, Task
from service.cli.answer_table import print_answer
from service.cli.table import left, print_rows, right


def test_names_and_labels_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters and broken UTF-8 are replaced; what looks like markup or an emoji is plain text."""
    labels = (Label("[red]:cat:\x1b[31m\r\n", 0, 0.5),)
    result = Classification(ImageSize(4, 3), labels, Meta("model", Task.CLASSIFY))
    print_answer("a\x1b]0;title\x07\udcff.png", result)
    title, _, row = capsys.readouterr().out.splitlines()
    assert title == "a\ufffd]0;title\ufffd\ufffd.png  4 x 3  model"
    assert row == "[red]:cat:\ufffd[31m\ufffd\ufffd  0.5000"


def test_a_long_label_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """One row is one line, however narrow a terminal might be; only a bounded column cuts its words."""
    print_rows([left("label"), left("licence", max_width=8), right("n")], [["word " * 60, "free for all", "1"]])
    _, row = capsys.readouterr().out.splitlines()
    assert row == f"{'word ' * 60}  free fo…  1"
