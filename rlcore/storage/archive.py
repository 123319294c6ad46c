"""Reading what torch.save wrote without executing or believing anything in it.

The file is a zip archive of one pickle and the bytes of each tensor. torch.load's `weights_only` stops code but not
size: a pickle of a few bytes may still ask for gigabytes. Here nothing is made that the file does not hold byte by
byte, so that reading takes at most some ten times the file's size.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DEEPEST = 200  # nested containers; the environments' wrappers and copies are the deepest part
LARGEST_RATIO, LARGEST_EXTRA = 9, 90 * 2**20  # memory for the pickle: so many times the file's size, and so many bytes
DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
PLAIN = (Tensor, bool, int, float, str, bytes, type(None))
UNSIGNED = {"uint16": torch.uint16, "uint32": torch.uint32, "uint64": torch.uint64}  # these have no storage type
OPCODES = (  # of pickles of tensors and built-in types, protocol 2
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BINPERSID", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
)
NOT_PLAIN = "it does not hold tensors and plain data alone"


class Refused(Exception):
    """What is wrong with a file, in words."""


def read_archive(path: Path) -> Any:
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        _check_entries(archive, size)
        (name,) = (name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1)
        folder = name.removesuffix("data.pkl")
        if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
            raise Refused("it is of a machine with another order of bytes")
        pickled = archive.read(name)
        _check_pickle(pickled, size)
        payload = _Unpickler(pickled, lambda key: archive.read(f"{folder}data/{key}"), 2 * size).load()
    _check_tree(payload)
    return payload


def _check_entries(archive: zipfile.ZipFile, size: int) -> None:
    """torch.save compresses nothing, so the entries of its files are no larger than the file."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise Refused("its parts are compressed or encrypted, which those of a checkpoint never are")
    if sum(entry.file_size for entry in entries) > size or len({entry.filename for entry in entries}) < len(entries):
        raise Refused("its parts are larger than the file or bear the same name")


def _check_pickle(pickled: bytes, size: int) -> None:
    """Refuse a pickle that would take much more memory than the file: each of these bytes may begin a container
    (some 80 bytes) or an entry of the reader's memory (some 130), any other at most a number."""
    containers = sum(pickled.count(byte) for byte in (b"}", b"]", b"(", b"t", b"\x85", b"\x86", b"\x87"))
    if 80 * containers + 130 * pickled.count(b"r") + 16 * len(pickled) > LARGEST_RATIO * size + LARGEST_EXTRA:
        raise Refused("it holds more objects than its size explains")


def _check_tree(payload: Any) -> None:
    """Refuse what is no tensor or built-in type, nesting without end, and containers that are referred to so often
    that going through all of them would never end."""
    sizes: dict[int, int] = {}  # values inside each container, as often as they are referred to; 0 until it is counted
    distinct = 0

    def count(value: Any, depth: int) -> int:
        nonlocal distinct
        if not isinstance(value, dict | list | tuple):
            if not isinstance(value, PLAIN):
                raise Refused(NOT_PLAIN)
            return 1
        if id(value) not in sizes:
            if depth > DEEPEST:
                raise Refused("it is nested too deeply")
            sizes[id(value)] = 0
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum([count(part, depth + 1) for part in parts])  # noqa: C419  a generator is a frame more at each level
            distinct += 1 + len(parts)
        if not sizes[id(value)]:
            raise Refused("one of its parts contains itself")
        return sizes[id(value)]

    if count(payload, 0) > 4 * distinct + 10_000:
        raise Refused("its parts refer to each other too often")


class _Unpickler(pickle._Unpickler):
    """The Python reader of pickles, cut down to what torch.save writes of tensors and built-in types. `read_storage`
    gives the bytes of a memory by its name. Tensors may share it, but have `most` bytes together at most."""

    def __init__(self, pickled: bytes, read_storage: Callable[[str], bytes], most: int):
        super().__init__(io.BytesIO(pickled))
        self.read_storage, self.left = read_storage, most
        self.storages: dict[str, bytearray] = {}
        self.makers: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): lambda: {},  # not the class itself, which takes what is in the file
            ("__builtin__", "bytes"): lambda: b"",
            ("_codecs", "encode"): _encode,
            ("torch._utils", "_rebuild_tensor_v2"): self._rebuild,
            ("torch._utils", "_rebuild_tensor_v3"): self._rebuild_unsigned,
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.makers:
            return self.makers[module, name]
        if (module == "torch" and name in DTYPES | UNSIGNED) or (module, name) == ("torch.storage", "UntypedStorage"):
            return name
        raise Refused(NOT_PLAIN)

    def persistent_load(self, pid: Any) -> tuple[bytearray, torch.dtype]:
        """The memory of a tensor, and its type."""
        kind, dtype, key, *_ = pid
        if kind != "storage" or dtype not in DTYPES or not isinstance(key, str) or not key.isdecimal():
            raise Refused(NOT_PLAIN)
        if key not in self.storages:
            self.storages[key] = bytearray(self.read_storage(key))
        return self.storages[key], DTYPES[dtype]

    def _rebuild(self, storage: tuple, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
        memory, dtype = storage
        if any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
            raise Refused("a tensor has an impossible size")
        count = math.prod(shape)
        self.left -= count * dtype.itemsize
        if self.left < 0:
            raise Refused("its tensors are larger than the file")
        if not count:
            return torch.empty(shape, dtype=dtype)
        whole = torch.frombuffer(memory, dtype=torch.uint8 if dtype == torch.bool else dtype)
        tensor = whole.as_strided(shape, strides, offset)  # refuses what lies outside
        return tensor != 0 if dtype == torch.bool else tensor  # the bytes of bools may be nothing but 0 and 1

    def _rebuild_unsigned(self, storage: tuple, *arguments: Any) -> Tensor:
        offset, shape, strides, _, _, dtype, *_ = arguments
        return self._rebuild((storage[0], UNSIGNED[dtype]), offset, shape, strides)

    def load_build(self) -> None:
        """Leave out the attributes that torch puts on a state_dict."""
        self.stack.pop()  # type: ignore[attr-defined]  # which typeshed leaves out

    dispatch = {code: pickle._Unpickler.dispatch[code] for code in (ord(getattr(pickle, name)) for name in OPCODES)}
    dispatch[ord(pickle.BUILD)] = load_build  # type: ignore[assignment]  # a method of this class


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, which this version of pickles stores as text."""
    if encoding != "latin1":
        raise Refused(NOT_PLAIN)
    return text.encode("latin1")
