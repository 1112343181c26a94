from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.train import train_app
from tests.model.training.pets_dataset import write_photographs


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "pets")


def train(*arguments: str | Path) -> Result:
    return CliRunner().invoke(train_app, [str(one) for one in arguments], env={"NO_COLOR": "1"})


def test_one_command_evaluates_the_embedded_bundles(pets: Path) -> None:
    """The table has a line per metric of each of the three."""
    ran = train("evaluate", "--data", pets)
    assert (ran.exit_code, ran.stderr) == (0, "")
    lines = [line.split()[:2] for line in ran.stdout.splitlines()]
    for line in (["convmlp_pets_breed", "top1"], ["convmlp_pets_heads", "ap50"], ["convmlp_pets_outline", "miou"]):
        assert line in lines


@pytest.mark.parametrize("course", ["heads", "outline"])
def test_heads_and_outline_need_a_breed_model(course: str, pets: Path, tmp_path: Path) -> None:
    """Without one, the message has the ways to make or set it."""
    ran = train(course, "--data", pets, "--out", tmp_path / "out")
    assert ran.exit_code == 2
    assert "run `convmlp train breed` first, or set --backbone-from" in ran.stderr


def test_too_few_photographs_are_an_error(pets: Path, tmp_path: Path) -> None:
    """Fewer photographs than a batch are an error message with exit status 1."""
    ran = train("breed", "--data", pets, "--out", tmp_path / "out", "--threads", "1")
    assert ran.exit_code == 1
    assert ran.stderr.splitlines()[-1] == "convmlp: there are 8 examples, fewer than a batch of 48"


def test_a_folder_without_bundles_is_an_error(pets: Path, tmp_path: Path) -> None:
    """The message names the folder; the exit status is 1."""
    ran = train("evaluate", "--data", pets, "--bundles", tmp_path)
    assert ran.exit_code == 1
    assert str(tmp_path) in ran.stderr


def test_another_backbone_is_trained_and_evaluated(pets: Path, tmp_path: Path) -> None:
    """From the command line to a bundle of its name, whose accuracy and cost `evaluate` prints."""
    # A batch takes 48 photographs.
    index = (pets / "index.csv").read_text().splitlines(keepends=True)
    (pets / "index.csv").write_text("".join([*index, *index[1:] * 5]))
    ran = train("breed", "--data", pets, "--out", tmp_path, "--backbone", "hvt", "--epochs", "1")
    assert ran.exit_code == 0, ran.output
    assert f"wrote {tmp_path}/bundles/hvt_tiny_pets_breed" in ran.stdout
    ran = train("evaluate", "--data", pets, "--bundles", tmp_path / "bundles")
    metrics = [line.split()[1] for line in ran.stdout.splitlines() if "hvt_tiny_pets_breed" in line]
    assert {"top1", "parameters_millions", "gmacs", "images_per_cpu_second"} <= set(metrics)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["breed", "--backbone", "vgg"],
            "there is no backbone 'vgg'; choose one of convmlp, hire_mlp, repmlpnet, cmt, ",
        ),
        (["breed", "--backbone", "cmt", "--size", "l"], "cmt has no size 'l'; choose one of tiny, ti, xs, s, b"),
        (["breed", "--size", "ti"], "--size ti needs --backbone"),
        (["outline", "--backbone", "hvt"], "hvt has no feature levels: it can be trained as `breed` only"),
        (
            ["heads", "--backbone", "hire_mlp"],
            "run `convmlp train breed --backbone hire_mlp --size tiny` first, or set ",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(arguments: list[str], message: str, pets: Path, tmp_path: Path) -> None:
    """At once, with exit status 2 and what can be chosen."""
    ran = train(*arguments, "--data", pets, "--out", tmp_path / "out")
    assert ran.exit_code == 2
    assert message in ran.stderr
    assert not (tmp_path / "out").exists()
