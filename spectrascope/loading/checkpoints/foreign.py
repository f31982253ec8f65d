"""Formats of others: named for what they are, with what converts them, before anything is taken for damage."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from spectrascope.loading.checkpoints.headers import quoted

__all__ = ["ARRAYS_TO_TENSORS", "name_foreign_archive", "name_foreign_file", "name_foreign_folder", "name_text"]

_WEIGHTS = "expected PyTorch weights (.pt, .safetensors)"
_AGAIN = "download the file again"
_PAGE = f"a web page, perhaps a login or error page saved in the file's place; {_AGAIN}"
ARRAYS_TO_TENSORS = "torch.save({name: torch.from_numpy(array) for name, array in ARRAYS.items()}, 'OUTPUT.pt')"
_DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
_KERAS = (
    "with KERAS_BACKEND=torch a Keras model is a torch.nn.Module: save the state_dict() of "
    "keras.saving.load_model(FILE) with torch.save and pass that"
)
_TENSORFLOW = (
    f"read it with tf.train.load_checkpoint(PREFIX) and write {ARRAYS_TO_TENSORS} under the network's own names"
)
_FLAX = f"read it with flax.serialization.msgpack_restore and write {ARRAYS_TO_TENSORS} under the network's own names"
_NUMPY = f"with ARRAYS = numpy.load(FILE) write {ARRAYS_TO_TENSORS} and pass that"
_ORBAX = f"read it with orbax.checkpoint.StandardCheckpointer().restore(FOLDER) and write {ARRAYS_TO_TENSORS}"
_COMPILED = "its weights are compiled into a program; load the checkpoint it was made from"
_EXPORTED = (
    "a program written by torch.export.save, not weights; save the weights of torch.export.load(FILE).state_dict with "
    "torch.save and pass that"
)
_NEMO = "unpack it with tar -xf FILE and pass its model_weights.ckpt"

_BY_HEAD = (
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file, as Keras writes them; {_KERAS}"),
    (b"GGUF", "a GGUF file, whose weights are usually quantised; load the checkpoint it was made from"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to; run git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"\xfd7zXZ", "compressed with xz; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x93NUMPY", f"a NumPy array without a name; {_WEIGHTS}"),
    (b"MATLAB 5.0", f"a MATLAB file; read it with scipy.io.loadmat and write {ARRAYS_TO_TENSORS}"),
    (b"ftrt", f"a TensorRT engine; {_COMPILED}"),
    (b"\x7fELF", f"a compiled library; {_COMPILED}"),
    (b"{", "JSON text; expected weights, or an index of shards called *.index.json"),
)
_BY_ENDING = {
    ".msgpack": f"Flax weights; {_FLAX}",
    ".onnx": f"an ONNX graph; save the state_dict() of the network it was exported from, {_WEIGHTS}",
    ".h5": f"an HDF5 file, as Keras writes them; {_KERAS}",
    ".hdf5": f"an HDF5 file, as Keras writes them; {_KERAS}",
    ".keras": f"a Keras model; {_KERAS}",
    ".pb": f"a TensorFlow graph; {_WEIGHTS}",
    ".tflite": f"a TensorFlow Lite graph; {_COMPILED}",
    ".mlmodel": f"a Core ML model; {_COMPILED}",
    ".engine": f"a TensorRT engine; {_COMPILED}",
    ".plan": f"a TensorRT engine; {_COMPILED}",
    ".trt": f"a TensorRT engine; {_COMPILED}",
    ".pdparams": f"PaddlePaddle weights; read them with paddle.load, and write {ARRAYS_TO_TENSORS}",
    ".caffemodel": f"Caffe weights; {_WEIGHTS}",
    ".nemo": f"a NeMo archive; {_NEMO}",
    ".ocdbt": f"a part of an Orbax checkpoint (JAX); {_ORBAX}",
}
_TENSORFLOW_PART = re.compile(r"\.data-\d{5}-of-\d{5}$|\.ckpt(-\d+)?\.(index|meta)$")
_CHECKPOINT_IN_ARCHIVE = (".pt", ".pth", ".safetensors", ".ckpt", ".bin")


def name_foreign_file(path: Path, head: bytes) -> str:
    """What a file is and what to do, where it is plainly no PyTorch checkpoint; else empty.

    Args:
        path: its name counts where its bytes do not tell.
        head: its first 512 bytes, or all there are.
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")):
        return f"is {_PAGE}"
    for magic, what in _BY_HEAD:
        if head.startswith(magic):
            return f"is {what}"
    if head[4:8] == b"TFL3":
        return f"is {_BY_ENDING['.tflite']}"
    if head[257:262] == b"ustar":
        return f"is a {'NeMo' if path.suffix.lower() == '.nemo' else 'tar'} archive; {_tar_advice(path)}"
    if path.suffix == ".distcp" or path.name == ".metadata":
        return (
            "is one part of a sharded training checkpoint of torch.distributed; convert its folder to one file with "
            f"{_DCP} FOLDER OUTPUT.pt and pass that"
        )
    if path.suffix == ".pt2":
        return f"is {_EXPORTED}"
    if _TENSORFLOW_PART.search(path.name):
        return f"is a part of a TensorFlow checkpoint; {_TENSORFLOW}"
    if head.startswith((b"PK", b"\x80\x02")):  # torch's own, whatever it is called
        return ""
    what = _BY_ENDING.get(path.suffix.lower(), "")
    return f"is {what}" if what else ""


def _tar_advice(path: Path) -> str:
    return _NEMO if path.suffix.lower() == ".nemo" else "unpack it with tar -xf FILE first"


def name_foreign_archive(names: Collection[str]) -> str:
    """What a zip archive is by the names in it, and what to do, where torch did not write it; else empty."""
    parts = [PurePosixPath(name) for name in names]
    last = {part.name for part in parts}
    if "data.pkl" in last or any("/code/" in name for name in names):  # TorchScript has words of its own
        return ""
    if "archive_format" in last:
        return f"is {_EXPORTED}"
    if any(part.suffix == ".npy" for part in parts):
        return f"is a NumPy archive; {_NUMPY}"
    if "model.weights.h5" in last:
        return f"is a Keras model; {_KERAS}"
    if any(part.suffix in (".mlmodel", ".mlpackage") for part in parts):
        return f"is {_BY_ENDING['.mlmodel']}"
    inside = [name for name in names if name.lower().endswith(_CHECKPOINT_IN_ARCHIVE)]
    if inside:
        return f"is a zip archive with {quoted(inside[0])} in it; unpack it first"
    some = ", ".join(quoted(name) for name in list(names)[:3])
    return f"is a zip archive without a checkpoint in it (it holds {some or 'nothing'}); {_WEIGHTS}"


def name_text(head: bytes) -> str:
    """What a file says that is plain text, as an error message saved in its place is; else empty."""
    try:
        text = head.decode("ascii").strip()
    except UnicodeDecodeError:
        return ""
    if len(text) < 4 or not all(character.isprintable() or character.isspace() for character in text):
        return ""
    return f"is text ({quoted(text)[:60]!r}), perhaps an error message saved in the file's place; {_AGAIN}"


def name_foreign_folder(folder: Path, names: Collection[str]) -> str:
    """What a folder is and what to do, where it is a checkpoint of another kind; else empty.

    Args:
        folder: it.
        names: of the files in it.
    """
    if any(name.endswith(".distcp") for name in names):
        return (
            f"is a sharded training checkpoint of torch.distributed; convert it to one file with {_DCP} {folder} "
            "OUTPUT.pt and pass that"
        )
    folders = [inner for inner in sorted(folder.iterdir()) if inner.is_dir()]
    sharded = next((inner for inner in folders if any(inner.glob("*.distcp"))), None)
    if sharded is not None:
        return (
            f"keeps its weights in {sharded.name}, a sharded training checkpoint of torch.distributed (FSDP); convert "
            f"it to one file with accelerate merge-weights {sharded} OUTPUT and pass that"
        )
    if any(any(folder.glob(f"{above}mp_rank_*/model_optim_rng.pt")) for above in ("", "*/")):
        return "is a Megatron-LM checkpoint; convert it with its tools/checkpoint/convert.py, or pass one whole file"
    if "zero_to_fp32.py" in names or any(folder.glob("*/mp_rank_*")) or any(folder.glob("mp_rank_*")):
        return "is a DeepSpeed checkpoint; convert it to one file with its zero_to_fp32.py and pass that"
    if "saved_model.pb" in names:
        return f"is a TensorFlow model; {_WEIGHTS}"
    if any(_TENSORFLOW_PART.search(name) for name in names):
        return f"holds a TensorFlow checkpoint; {_TENSORFLOW}"
    within = {*names, *(path.name for path in folder.glob("*/*"))}
    if within & {"manifest.ocdbt", "_CHECKPOINT_METADATA", "_METADATA", "ocdbt.process_0"}:
        return f"is an Orbax checkpoint (JAX); {_ORBAX}"
    if "Manifest.json" in names and (folder / "Data").is_dir():
        return f"is {_BY_ENDING['.mlmodel']}"
    foreign = {path.suffix.lower(): name for name in names if (path := Path(name)).suffix.lower() in _BY_ENDING}
    if len(foreign) == 1:
        ((ending, name),) = foreign.items()
        return f"holds {name}, {_BY_ENDING[ending]}"
    return ""
