from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from model.bundle import EMBEDDED_DIR, read_bundle
from model.zoo.checkpoint import read_checkpoint
from service.cli.app import app
from tests.model.tiny_models import tiny_checkpoint


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "models"


def models(*arguments: str | Path, store: Path | None = None) -> Result:
    environment = {"CONVMLP_MODELS_DIR": str(store) if store else None, "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["models", *map(str, arguments)], env=environment)


def test_an_imported_model_is_in_the_store(tmp_path: Path, store: Path) -> None:
    """The command prints what the model is and where; `list` and `show` have it."""
    ran = models("import", tiny_checkpoint(tmp_path, "retinanet"), "--as", "mine", store=store)
    assert (ran.exit_code, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == [
        f"mine: detect, retinanet convmlp custom, 5 labels, 0.2 MB -> {store / 'mine'}",
        "  pipeline: fits into 1333 x 800 px, bilinear, padded to multiples of 32, mean 123.7 116.3 103.5, "
        "std 58.4 57.12 57.38, scores above 0.05 "
        "(assumed; --like, --config or --input-size gives the one of the training)",
        "  labels: class 0, class 1, class 2, … (assumed; --labels gives names)",
        "  weights: state_dict",
    ]
    assert "mine" in models("list", store=store).stdout
    assert "imported from mine.pth (sha256 " in models("show", "mine", store=store).stdout


def test_labels_task_and_precision_can_be_given(tmp_path: Path, store: Path) -> None:
    """A label file may have a byte order mark, Windows line ends, and blanks around the names."""
    labels = tmp_path / "labels.txt"
    labels.write_bytes("\ufeffcat\r\ndog \r\nZürich\r\n\tox\r\nhen".encode())
    options = ["--task", "classify", "--labels", str(labels), "--precision", "bf16", "--models-dir", str(store)]
    ran = models("import", tiny_checkpoint(tmp_path, "classifier"), "--as", "mine", *options)
    assert (ran.exit_code, ran.stderr) == (0, "")
    config = read_bundle(store / "mine").config
    assert (config.labels, config.precision) == (("cat", "dog", "Zürich", "ox", "hen"), "bf16")


def test_an_export_answers_as_the_model_did(tmp_path: Path, store: Path) -> None:
    """Export, import: the same version but for the name, and so the same answers."""
    assert models("export", "convmlp_pets_heads", tmp_path / "heads.pth").exit_code == 0
    ran = models("import", tmp_path / "heads.pth", "--as", "convmlp_pets_heads", "--force", store=store)
    assert (ran.exit_code, "scores above 0.5 (as exported)" in ran.stdout) == (0, True)
    before, after = (read_bundle(folder / "convmlp_pets_heads").config for folder in (EMBEDDED_DIR, store))
    assert after.model_copy(update={"reference": before.reference}) == before
    assert after.version == before.version


def test_flags_replace_parts_of_the_pipeline(tmp_path: Path, store: Path) -> None:
    """Of a classifier and of a detector; fractions and grey levels; the output lists them."""
    flags = ["--input-size", "192", "--interpolation", "bilinear", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"]
    ran = models("import", tiny_checkpoint(tmp_path, "classifier"), "--as", "mine", *flags, store=store)
    assert "centre 192 x 192 px, bilinear, mean 127.5 127.5 127.5, std 127.5 127.5 127.5 (from the flags)" in ran.stdout
    flags = ["--input-size", "480x640", "--score-threshold", "0.4", "--mean", "1,2,3", "--std", "4,5,6"]
    ran = models("import", tiny_checkpoint(tmp_path, "retinanet"), "--as", "boxes", *flags, store=store)
    assert "fits into 640 x 480 px, bilinear, padded to multiples of 32, mean 1 2 3, std 4 5 6" in ran.stdout
    assert "scores above 0.4 (from the flags)" in ran.stdout
    flags = ["--input-size", "640x480", "--no-keep-ratio"]
    ran = models("import", tiny_checkpoint(tmp_path, "retinanet"), "--as", "fixed", *flags, store=store)
    assert "resized to 640 x 480 px, bilinear, padded to multiples of 32" in ran.stdout
    flags = ["--input-size", "96", "--no-keep-ratio"]
    ran = models("import", tiny_checkpoint(tmp_path, "classifier"), "--as", "squashed", *flags, store=store)
    assert "both sides 96 px, centre 96 x 96 px" in ran.stdout
    ran = models("import", tiny_checkpoint(tmp_path, "retinanet"), "--as", "like", "--like", "boxes", store=store)
    assert "scores above 0.4 (as of boxes)" in ran.stdout
    ran = models(
        "import", tiny_checkpoint(tmp_path, "classifier"), "--as", "b", "--like", "convmlp_s_cifar10", store=store
    )
    assert "shorter side 224 px, centre 224 x 224 px" in ran.stdout


@pytest.mark.parametrize(
    ("flags", "status", "why"),
    [
        (["--mean", "1,2,3"], 2, "--mean and --std belong together"),
        (["--mean", "1,2", "--std", "1,2,3"], 2, "--mean 1,2: expected three numbers"),
        (["--input-size", "large"], 2, "expected N, or LONGxSHORT"),
        (["--input-size", "0"], 2, "expected N, or LONGxSHORT"),
        (["--input-size", "640x0"], 2, "expected N, or LONGxSHORT"),
        (["--input-size", "224", "--crop", "224"], 2, "exclude each other"),
        (["--no-keep-ratio"], 2, "--no-keep-ratio needs --input-size"),
        (["--resize", "0"], 2, "Invalid value for '--resize'"),
        (["--score-threshold", "2"], 2, "Invalid value for '--score-threshold'"),
        (["--score-threshold", "0.5"], 1, "--score-threshold is for detectors"),
        (["--input-size", "640x480"], 1, "classifiers take --input-size N"),
        (["--like", "unknown"], 1, "there is no model 'unknown' to serve it like"),
        (["--like", "convmlp_pets_heads"], 1, "is for another task"),
        (["--weights", "ema"], 1, "has no averaged weights"),
    ],
)
def test_wrong_flags_are_an_error(tmp_path: Path, store: Path, flags: list[str], status: int, why: str) -> None:
    """The message names the flag, and no model is made."""
    ran = models("import", tiny_checkpoint(tmp_path, "classifier"), "--as", "mine", *flags, store=store)
    assert (ran.exit_code, ran.stdout) == (status, "")
    assert why in " ".join(ran.stderr.replace("│", " ").split())
    assert not store.exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"cat\ndog\n", "2 labels are given"),
        (b"cat\n\ndog\nox\nhen\n", "line 2 is empty"),
        (b"cat\xff\ndog\nox\nhen\npig\n", "is not UTF-8 text"),
        (b"x" * (2**26 + 1), "has more than 67,108,864 bytes"),
        (None, "cannot be read: No such file"),
    ],
    ids=["two", "gap", "latin", "huge", "missing"],
)
def test_wrong_labels_are_an_error(tmp_path: Path, store: Path, content: bytes | None, why: str) -> None:
    """A wrong label file is an error message, and no model is made."""
    labels = tmp_path / "labels.txt"
    if content is not None:
        labels.write_bytes(content)
    ran = models("import", tiny_checkpoint(tmp_path, "classifier"), "--as", "mine", "--labels", labels, store=store)
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert why in ran.stderr
    assert not store.exists()


def test_an_existing_model_is_replaced_only_by_force(tmp_path: Path, store: Path) -> None:
    """An existing name, also of an embedded model, is an error; --force overrides it."""
    classifier, segmenter = (tiny_checkpoint(tmp_path, one, f"{one}.pth") for one in ("classifier", "semantic_fpn"))
    assert models("import", classifier, "--as", "mine", store=store).exit_code == 0
    again = models("import", segmenter, "--as", "mine", store=store)
    assert (again.exit_code, again.stdout) == (1, "")
    assert f"model mine exists already, in {store}; --force" in again.stderr
    assert read_bundle(store / "mine").config.task == "classify"
    assert models("import", segmenter, "--as", "mine", "--force", store=store).exit_code == 0
    assert read_bundle(store / "mine").config.task == "segment"
    embedded = models("import", classifier, "--as", "convmlp_pets_breed", store=store)
    assert (embedded.exit_code, "already, embedded" in embedded.stderr) == (1, True)
    assert models("import", classifier, "--as", "convmlp_pets_breed", "--force", store=store).exit_code == 0
    assert str(store / "convmlp_pets_breed") in models("show", "convmlp_pets_breed", store=store).stdout


@pytest.mark.parametrize("command", [["import", "a.pth", "--as", "mine"], ["pull", "convmlp_s_imagenet"]])
def test_without_a_folder_of_models_the_ways_to_set_it_are_listed(command: list[str]) -> None:
    """Without a folder, nothing is read, downloaded or written."""
    ran = models(*command)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert "--models-dir DIR, CONVMLP_MODELS_DIR, or models_dir in convmlp.toml" in ran.stderr


def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path, store: Path) -> None:
    """The message is one line, the exit status is 1, and the store is not created."""
    (tmp_path / "a.pth").write_bytes(b"<html>")
    for file, why in (
        (tmp_path / "a.pth", "is an HTML or XML page and not a checkpoint"),
        (tmp_path / "b.pth", "No such file"),
    ):
        ran = models("import", file, "--as", "mine", store=store)
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert why in ran.stderr
        assert ran.stderr.count("\n") == 1
    assert not store.exists()


def test_a_store_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """If a file is in the way, the message has the path and the system's reason."""
    (tmp_path / "file").touch()
    ran = models("import", tiny_checkpoint(tmp_path, "classifier"), "--as", "mine", store=tmp_path / "file" / "store")
    assert (ran.exit_code, ran.stdout) == (1, "")
    assert f"{tmp_path / 'file'}" in ran.stderr
    assert "cannot be written: Not a directory" in ran.stderr


def test_without_torch_the_extra_is_named(tmp_path: Path, store: Path) -> None:
    """Calling a service needs no torch. The error of `import` names the extra that installs it."""
    script = "import sys; sys.modules['torch'] = None; from service.cli.app import main; main()"
    arguments = ["import", str(tiny_checkpoint(tmp_path, "classifier")), "--as", "mine", "--models-dir", str(store)]
    command = [sys.executable, "-c", script, "models", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr == (
        "convmlp: this command needs torch, which is not installed; install this package's extra `worker`\n"
    )


def test_a_model_is_exported_as_onnx(tmp_path: Path, store: Path) -> None:
    """The suffix selects it, unless --format does; the output has the largest differences; --force overwrites."""
    models("import", tiny_checkpoint(tmp_path, "classifier"), "--as", "mine", "--input-size", "64", store=store)
    file = tmp_path / "mine.onnx"
    ran = models("export", "mine", file, store=store)
    assert (ran.exit_code, ran.stderr) == (0, "")
    first, second = ran.stdout.splitlines()
    assert first == f"mine -> {file}"
    assert re.fullmatch(r"  checked with ONNX Runtime; largest differences: scores \d\.\de-\d\d", second)
    ran = models("export", "mine", file, store=store)
    assert (ran.exit_code, ran.stderr) == (1, f"convmlp: {file} exists already; --force overwrites it\n")
    ran = models("export", "mine", file, "--format", "checkpoint", "--force", store=store)
    assert (ran.exit_code, len(read_checkpoint(file).tensors) > 0) == (0, True)


def test_without_onnx_the_extra_is_named(tmp_path: Path) -> None:
    """Nothing else needs these packages."""
    script = "import sys; sys.modules['onnxruntime'] = None; from service.cli.app import main; main()"
    command = [sys.executable, "-c", script, "models", "export", "convmlp_pets_breed", str(tmp_path / "breed.onnx")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (
        1,
        "convmlp: this command needs onnxruntime, which is not installed; install this package's extra `onnx`\n",
    )


WITH_FULL_DISK = """
import json, resource, sys
import service.cli.app

# A process over its limit of file size gets the same kind of error as on a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["convmlp", "models", *arguments]
    try:
        service.cli.app.main()
    except SystemExit as end:
        print(end.code)
"""


def test_a_full_disk_is_an_error(tmp_path: Path, store: Path) -> None:
    """The message is one line, and no partial model or file is left."""
    checkpoint = tiny_checkpoint(tmp_path, "retinanet")
    importing = ("import", str(checkpoint), "--as", "mine", "--models-dir", str(store))
    exporting = ("export", "convmlp_pets_heads", str(tmp_path / "out.pth"))
    command = [sys.executable, "-c", WITH_FULL_DISK, json.dumps([importing, exporting])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.split()) == (0, ["1", "1"]), ran.stderr
    lines = ran.stderr.splitlines()
    assert len(lines) == 2
    assert all("cannot be written: " in line and "File too large" in line for line in lines)
    assert list(store.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pth", "models"]


def test_export_writes_the_imported_checkpoint(tmp_path: Path, store: Path) -> None:
    """An embedded model can be exported too, without a store."""
    file = tiny_checkpoint(tmp_path, "mask_rcnn")
    assert models("import", file, "--as", "mine", store=store).exit_code == 0
    out = tmp_path / "out.pth"
    ran = models("export", "mine", out, store=store)
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, f"mine -> {out}\n", "")
    before, after = read_checkpoint(file).tensors, read_checkpoint(out).tensors
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert models("export", "convmlp_pets_heads", tmp_path / "heads.pth").exit_code == 0
    assert read_checkpoint(tmp_path / "heads.pth").tensors


def test_export_overwrites_only_by_force(tmp_path: Path) -> None:
    """An existing file stays as it is without --force; an unknown model is an error."""
    out = tmp_path / "out.pth"
    out.write_bytes(b"precious")
    ran = models("export", "convmlp_pets_heads", out)
    assert (ran.exit_code, ran.stdout, out.read_bytes()) == (1, "", b"precious")
    assert "exists already; --force overwrites it" in ran.stderr
    assert models("export", "convmlp_pets_heads", out, "--force").exit_code == 0
    assert read_checkpoint(out).tensors
    for arguments, why in (
        (("unknown", tmp_path / "a.pth"), "there is no model 'unknown' in the store"),
        (("convmlp_pets_heads", tmp_path / "no" / "a.pth"), "cannot be written: there is no folder"),
    ):
        ran = models("export", *arguments)
        assert (ran.exit_code, ran.stdout) == (1, "")
        assert why in ran.stderr


def test_verify_prints_a_line_for_each_check(tmp_path: Path, store: Path) -> None:
    """Exit status 0 if the model can serve, 1 if a check failed or there is no such model."""
    assert models("import", tiny_checkpoint(tmp_path, "classifier"), "--as", "mine", store=store).exit_code == 0
    ran = models("verify", "mine", store=store)
    assert (ran.exit_code, ran.stderr) == (0, "")
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert [line[1] for line in lines[:5]] == ["files", "labels", "pipeline", "weights", "reference"]
    (store / "mine" / "model.safetensors").write_bytes(b"damaged")
    ran = models("verify", "mine", "--json", store=store)
    assert ran.exit_code == 1
    assert json.loads(ran.stdout)["outcome"] == "failed"
    ran = models("verify", "unknown", store=store)
    assert (ran.exit_code, "there is no model 'unknown'" in ran.stderr) == (1, True)


def test_versions_of_a_model_lie_side_by_side(tmp_path: Path, store: Path) -> None:
    """Each is a model of the store under its own name; all commands take it, and @1 is the model without a version."""
    checkpoint = tiny_checkpoint(tmp_path, "classifier")
    assert models("import", checkpoint, "--as", "mine@1", store=store).exit_code == 0
    assert models("import", checkpoint, "--as", "mine", "--version", "2", store=store).exit_code == 0
    assert models("import", checkpoint, "--as", "mine@30", "--precision", "bf16", store=store).exit_code == 0
    assert sorted(folder.name for folder in store.iterdir()) == ["mine", "mine@2", "mine@30"]
    listed = [line.split()[0] for line in models("list", store=store).stdout.splitlines()]
    assert [name for name in listed if name.startswith("mine")] == ["mine", "mine@2", "mine@30"]
    assert "bf16" in models("show", "mine@30", store=store).stdout
    assert read_bundle(store / "mine@2").config.version != read_bundle(store / "mine").config.version
    assert models("verify", "mine@1", store=store).exit_code == 0
    assert models("export", "mine@2", tmp_path / "two.pth", store=store).exit_code == 0
    exists = models("import", checkpoint, "--as", "mine@2", store=store)
    assert (exists.exit_code, "model mine@2 exists already" in exists.stderr) == (1, True)


@pytest.mark.parametrize(
    ("flags", "status", "reason"),
    [
        (["--as", "mine@two"], 1, "for a further version @ and its number, such as name@2"),
        (["--as", "mine@0"], 1, "is not a valid model name"),
        (["--as", "mine@2@3"], 1, "is not a valid model name"),
        (["--as", "mine@2", "--version", "3"], 2, "contradict each other"),
    ],
)
def test_a_version_is_a_number(tmp_path: Path, store: Path, flags: list[str], status: int, reason: str) -> None:
    """Nothing is written where it is not."""
    ran = models("import", tiny_checkpoint(tmp_path, "classifier"), *flags, store=store)
    assert (ran.exit_code, reason in " ".join(ran.stderr.replace("│", " ").split())) == (status, True), ran.stderr
    assert not store.exists() or not list(store.iterdir())
