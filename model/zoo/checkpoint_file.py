"""Checkpoint files by their content, whatever their suffix: torch's formats, safetensors, and both in shards."""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import safetensors
from torch import Tensor

from model.errors import BundleInvalid
from model.files import open_regular
from model.zoo.unpickling import unpickle

MAX_BYTES = 2 * 2**30
"""Of the file or all its shards, and of its tensors. The largest published network has 62 M parameters; a file may also
have the optimizer's state."""
MAX_JSON_BYTES = 2**24
MAX_SHARDS = 64
CONFIG_NAMES = ("config.json", "preprocessor_config.json")
INDEX_SUFFIX = ".index.json"
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".pkl")
"""Of checkpoints in a tar archive."""

_EXPECTED = "give the PyTorch checkpoint of the model: torch.save(model.state_dict(), FILE), or safetensors"
_COPY_AGAIN = "copy or download it again"
_HEADS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip; unpack it first (gunzip, or tar xf)"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"\x89HDF", f"an HDF5 file, as Keras writes it; {_EXPECTED}"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself; run: git lfs pull"),
    (b"<", "an HTML or XML page and not a checkpoint; download the file itself"),
    (b"GGUF", f"a GGUF file; {_EXPECTED}"),
    (b"\x93NUMPY", f"an array of NumPy; {_EXPECTED}"),
    *(
        (start, f"a picture ({kind}) and not a checkpoint; {_EXPECTED}")
        for start, kind in ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"))
    ),
)
_ONNX = re.compile(rb"\x08[\x03-\x1f][\x12\x1a\x22\x2a\x32\x3a\x42]")
"""The field `ir_version`, 3 or more, and the start of a further field of ONNX's ModelProto."""
_SHARD_OF_TRAINING = "shard-*-model-*.safetensors"
"""Names of the files of torch.distributed.checkpoint.HuggingFaceStorageWriter, one or several of each process."""
_SHARDS_OF_TRAINING = (
    "the shards of a distributed training (torch.distributed.checkpoint); load them into the network, and save it "
    "whole: state = model.state_dict(); dcp.load(state, storage_reader=HuggingFaceStorageReader(FOLDER)); "
    "torch.save(state, FILE)"
)
_TORCHSCRIPT = (
    "a TorchScript program, whose code is not run; expected a state dict: "
    "torch.save(torch.jit.load(PROGRAM).state_dict(), FILE)"
)
_ZIP_PARTS = {
    "constants.pkl": _TORCHSCRIPT,
    "serialized_exported_program.json": f"a program of torch.export; {_EXPECTED}",
    "archive_format": f"a program of torch.export; {_EXPECTED}",
    "model.weights.h5": f"a model of Keras; {_EXPECTED}",
}
"""Parts by which other ZIP archives are known."""


@dataclass(frozen=True, slots=True)
class CheckpointFile:
    """The content of a file: usually a mapping, of tensors or of what a trainer saved.

    `metadata`: the strings in a safetensors header. `placeholders`: names whose objects were not loaded.
    """

    path: Path
    content: object
    placeholders: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def configs(self) -> list[Path]:
        """The configurations beside weights that timm or transformers wrote; they name these files so."""
        if not self.path.name.startswith(("model.", "pytorch_model.")):
            return []
        found = (self.path.with_name(name) for name in CONFIG_NAMES)
        return [path for path in found if path.is_file()]


def read_checkpoint_file(path: Path) -> CheckpointFile:
    """Read a file, the index of a file in shards, or a folder that has one checkpoint. No code in a file is run.

    Raises:
        BundleInvalid: the file is missing, too large, truncated, or in no format that is read; names what it is.
    """
    if path.is_dir():
        path = _only_checkpoint(path)
    head = _head(path)
    if head[257:262] == b"ustar":
        return _archived(path)
    if head.lstrip().startswith(b"{"):
        return _sharded(path)
    return _single(path, head, path)


def _single(path: Path, head: bytes, name: Path) -> CheckpointFile:
    """A file that is neither an archive nor an index; errors call it `name`. Raises BundleInvalid."""
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, name)
        return _torch_file(path, name, mmap=True)
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= path.stat().st_size - 8:
        return _safetensors_file(path, name)
    for start, kind in _HEADS:
        if head.lstrip().startswith(start):
            raise BundleInvalid(f"{name} is {kind}")
    if _ONNX.match(head):
        raise BundleInvalid(f"{name} is an ONNX model; {_EXPECTED}")
    if head[8:12] == b"WEBP":
        raise BundleInvalid(f"{name} is a picture (WebP) and not a checkpoint; {_EXPECTED}")
    if head[4:8] == b"TFL3":
        raise BundleInvalid(f"{name} is a TensorFlow Lite model; {_EXPECTED}")
    return _torch_file(path, name, mmap=False)


def _head(path: Path) -> bytes:
    """The first bytes of a file that is not too large. Raises BundleInvalid."""
    try:
        with open_regular(path) as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(512)
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise BundleInvalid(f"{path} is empty; copy or download it again")
    if size > MAX_BYTES:
        raise BundleInvalid(
            f"{path} has {size:,} bytes; the limit is {MAX_BYTES:,}; save the state dict without the optimizer's state"
        )
    return head


def _only_checkpoint(folder: Path) -> Path:
    """The checkpoint of a folder as Hugging Face's libraries write it. Raises BundleInvalid."""
    if (folder / ".metadata").exists():
        raise BundleInvalid(
            f"{folder} is a checkpoint of torch.distributed in shards; consolidate it first: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE.pth"
        )
    for name in ("model.safetensors", "pytorch_model.bin"):
        for candidate in (folder / name, folder / f"{name}{INDEX_SUFFIX}"):
            if candidate.exists():
                return candidate
    if any(folder.glob(_SHARD_OF_TRAINING)):
        raise BundleInvalid(f"{folder} has {_SHARDS_OF_TRAINING}")
    files = sorted(path.name for path in folder.iterdir() if path.name.endswith(SUFFIXES))
    listed = f"; it has {', '.join(files[:5])}{', …' if len(files) > 5 else ''}: give one of them" if files else ""
    raise BundleInvalid(
        f"{folder} is a folder; expected a file, or a folder with model.safetensors, pytorch_model.bin or the index of "
        f"either{listed}"
    )


def _check_zip(path: Path, name: Path) -> None:
    """torch.save does not compress; a compressed archive could expand without bound."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BundleInvalid(
            f"{name} is truncated or corrupt: it begins like a file of torch.save, but the list of its parts is "
            f"missing at its end ({error}); {_COPY_AGAIN}"
        ) from error
    names = {part.filename.rpartition("/")[2] for part in parts} - {""}
    for part_name, kind in _ZIP_PARTS.items():
        if part_name in names:
            raise BundleInvalid(f"{name} is {kind}")
    if names and all(part_name.endswith(".npy") for part_name in names):
        raise BundleInvalid(f"{name} has arrays of NumPy (.npz); {_EXPECTED}")
    if "data.pkl" not in names:
        listed = ", ".join(sorted(names)[:3])
        raise BundleInvalid(f"{name} is a ZIP archive of other files ({listed}); unpack it, and import the checkpoint")
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise BundleInvalid(
            f"{name} is a checkpoint whose parts were compressed, which torch.save does not do; unpack it, and pack it "
            "without compression, or save it again"
        )


def _torch_file(path: Path, name: Path, *, mmap: bool) -> CheckpointFile:
    with tempfile.TemporaryDirectory() as folder:
        # torch.load reads some suffixes as other formats.
        link = Path(folder) / "checkpoint.pth"
        link.symlink_to(path.resolve())
        found = unpickle(link, mmap=mmap, name=name)
    return CheckpointFile(name, found.content, found.placeholders)


def _safetensors_file(path: Path, name: Path) -> CheckpointFile:
    try:
        if fnmatch(path.name, _SHARD_OF_TRAINING) and len(list(path.parent.glob(_SHARD_OF_TRAINING))) > 1:
            raise BundleInvalid(f"{name} is one of {_SHARDS_OF_TRAINING}")
        with safetensors.safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return CheckpointFile(name, tensors, metadata=file.metadata() or {})
    except (OSError, safetensors.SafetensorError) as error:
        raise BundleInvalid(f"{name} is a safetensors file, truncated or corrupt ({error}); {_COPY_AGAIN}") from error


def _archived(path: Path) -> CheckpointFile:
    """The only checkpoint in a tar archive, which is copied: torch reads no part of a file."""
    try:
        with tarfile.open(path, "r:") as archive, tempfile.TemporaryDirectory() as folder:
            parts = archive.getmembers()
            if any(part.name == "storages" for part in parts):
                raise BundleInvalid(f"{path} was saved by torch before 0.1.10; load it there, and save it again")
            found = [part for part in parts if part.isreg() and part.name.endswith(SUFFIXES)]
            if len(found) != 1:
                listed = ", ".join(part.name for part in parts[:5])
                raise BundleInvalid(
                    f"{path} is a tar archive with {len(found)} checkpoints ({listed}); expected one "
                    f"({', '.join(SUFFIXES)}); unpack it, and import the checkpoint"
                )
            content = archive.extractfile(found[0])
            assert content is not None  # it is a regular file
            copy = Path(folder) / "checkpoint"
            with content, copy.open("wb") as file:
                shutil.copyfileobj(content, file)
            return _single(copy, _head(copy), path)
    except (tarfile.TarError, OSError) as error:
        raise BundleInvalid(f"{path} is a tar archive, truncated or corrupt ({error}); {_COPY_AGAIN}") from error


def _sharded(path: Path) -> CheckpointFile:
    """All tensors of the shards that an index lists. They lie beside it."""
    index = read_json(path)
    listed = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(listed, Mapping) or not all(isinstance(shard, str) for shard in listed.values()):
        raise BundleInvalid(f"{path} is JSON; expected a checkpoint, or the index of its shards (weight_map)")
    shards = sorted(set(listed.values()))
    if not 0 < len(shards) <= MAX_SHARDS:
        raise BundleInvalid(f"{path} lists {len(shards)} shards; expected 1 to {MAX_SHARDS}")
    if any(Path(shard).name != shard for shard in shards):
        raise BundleInvalid(f"{path} lists shards in other folders; expected names of files beside it")
    files = [path.parent / shard for shard in shards]
    heads = [_head(file) for file in files]
    if (total := sum(file.stat().st_size for file in files)) > MAX_BYTES:
        raise BundleInvalid(f"the shards of {path} have {total:,} bytes; the limit is {MAX_BYTES:,}")
    tensors: dict[object, object] = {}
    placeholders: set[str] = set()
    for file, head in zip(files, heads, strict=True):
        shard = _single(file, head, file)
        if not isinstance(shard.content, Mapping):
            raise BundleInvalid(f"{file}, a shard of {path}, has no tensors by name")
        tensors |= shard.content
        placeholders |= set(shard.placeholders)
    if missing := [name for name in listed if name not in tensors]:
        raise BundleInvalid(f"the shards of {path} lack {len(missing)} tensors that it lists, the first {missing[0]}")
    return CheckpointFile(path, tensors, tuple(sorted(placeholders)))


def read_json(path: Path) -> object:
    """A JSON file of at most `MAX_JSON_BYTES`. Raises BundleInvalid."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise BundleInvalid(f"{path} has more than {MAX_JSON_BYTES:,} bytes")
        return json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise BundleInvalid(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleInvalid(f"{path} is not valid JSON: {error}") from error
