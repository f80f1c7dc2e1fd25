"""Arrays and tensors as pickles and PyTorch's files store them, made of checked shapes and bytes by code of ours alone.

Sources: numpy's ``ndarray.__reduce__`` and ``dtype.__reduce__``, PyTorch's ``Tensor.__reduce_ex__`` and
``torch.save`` (a zip archive of ``NAME/data.pkl`` and ``NAME/data/KEY``; before 1.6, pickles followed by the storages).
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch

from .unpickling import MAX_OBJECTS, Function, Refused, StandIn, Unpickler, call, finish, set_items, update_set

NUMBERS = frozenset({
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
})  # fmt: skip
_MAX_DIMENSIONS = 32
_CHUNK = 2**24  # bytes read at once; an archive's file makes a copy of them first
MAGIC = 0x1950A86A20F9469CFC6C  # with which torch.save before 1.6 begins

# The types of numbers that an array may have, as NumPy names them in a pickle, and what others are called.
_ARRAY_NUMBERS = {"b1", "?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}
_OTHERS = {"O": "objects", "S": "text", "a": "text", "U": "text", "M": "dates", "m": "durations", "V": "records",
           "c": "complex numbers", "f": "long doubles"}  # fmt: skip
_LATIN1 = ("latin1", "latin-1")  # bytes, as older pickles write them


class _Budget:
    """What a file may cost, with the files in it: operations, and bytes if all that is shared is copied."""

    def __init__(self, size: int):
        self.steps = iter(range(MAX_OBJECTS))
        self._left = 8 * size + 2**20

    def take(self, num_bytes: int) -> None:
        self._left -= num_bytes
        if self._left < 0:
            raise ValueError("too large for such a file")


class _NumberType(StandIn):
    """``numpy.dtype``."""

    def __init__(self, name: Any, *_: Any):
        text = name if isinstance(name, str) else ""
        self._name = text.lstrip("<>=|")
        self._state: Any = (3, text.removesuffix(self._name) or "=")

    def build(self, state: Any) -> None:
        self._state = state

    def plain(self) -> np.dtype:
        """The type, if it is one of plain numbers."""
        if self._name not in _ARRAY_NUMBERS:
            raise ValueError(f"an array of {_OTHERS.get(self._name[:1], 'what is no number')}")
        # What follows the byte order: fields, parts, own sizes and flags, of which numbers have none.
        fits = type(self._state) is tuple and len(self._state) > 1 and self._state[1] in ("<", ">", "=", "|")
        if not fits or not all(rest in (None, 0, -1) for rest in self._state[2:]):
            raise ValueError("an array of records")
        return np.dtype(self._state[1].replace("|", "=") + self._name.replace("?", "b1"))


def _sizes(value: Any, what: str = "shape") -> tuple[int, ...]:
    fits = type(value) in (tuple, list) and len(value) <= _MAX_DIMENSIONS
    if not fits or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise ValueError(f"of an impossible {what}")
    return tuple(value)


class _Array(StandIn):
    """``numpy.ndarray``, or a NumPy number."""

    def __init__(self, budget: _Budget, content: Any = b"", number_type: Any = None, shape: Any = (0,),
                 order: Any = "C", axes: Any = None, is_number: bool = False):  # fmt: skip
        self._budget, self._is_number = budget, is_number
        self._content, self._type, self._shape, self._order, self._axes = content, number_type, shape, order, axes

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) not in (4, 5):
            raise ValueError("it holds an array in a form that NumPy does not write")
        self._shape, self._type, is_fortran, self._content = state[-4:]  # a version may stand before
        self._order = "F" if is_fortran is True or is_fortran == 1 else "C"

    def finish(self) -> Any:
        if not isinstance(self._type, _NumberType):
            raise ValueError("an array without a type")
        number_type, shape = self._type.plain(), _sizes(self._shape)
        if type(self._content) not in (bytes, bytearray, str):
            raise ValueError("an array without its bytes")
        if math.prod(shape) * number_type.itemsize != len(self._content):
            raise ValueError(f"of shape {shape} and {len(self._content)} bytes, which do not agree")
        self._budget.take(len(self._content))
        text = (self._content, "latin1") if isinstance(self._content, str) else (self._content,)  # str: of Python 2
        # Whatever the bytes of truth values are, each is True or False.
        array = np.ndarray(math.prod(shape), "u1" if number_type == np.bool_ else number_type, bytearray(*text))
        array = array != 0 if number_type == np.bool_ else array.astype(number_type.newbyteorder("="), copy=False)
        array = array.reshape(shape, order="F" if self._order == "F" else "C")
        if self._order == "K" and self._axes is not None:
            array = array.transpose(_sizes(self._axes, "order of axes"))
        return array[()] if self._is_number else array


class _StorageType(StandIn):
    """``torch.FloatStorage`` and its like."""

    def __init__(self, dtype: torch.dtype | None):
        self.dtype = dtype


class _Storage(StandIn):
    """The bytes that tensors look at; ``content`` is a tensor (number of bytes,) of uint8."""

    def __init__(self, dtype: torch.dtype | None):
        self.dtype = dtype  # None: bytes
        self.width = dtype.itemsize if dtype else 1
        self.content = torch.empty(0, dtype=torch.uint8)

    def fill(self, file: Any, num_bytes: int, *, swaps: bool) -> None:
        """Read the bytes, which are there."""
        buffer = bytearray(num_bytes)
        for start in range(0, num_bytes, _CHUNK):
            part = memoryview(buffer)[start : start + _CHUNK]
            if file.readinto(part) < len(part):
                raise EOFError("it ends too early")
        if swaps and self.width in (2, 4, 8):  # written by a machine of the other byte order
            np.frombuffer(buffer, f"u{self.width}").byteswap(inplace=True)
        if num_bytes:
            self.content = torch.frombuffer(buffer, dtype=torch.uint8)

    def finish(self) -> Any:
        raise ValueError("a storage without a tensor")


class _Tensor(StandIn):
    """``torch.Tensor``."""

    def __init__(self, budget: _Budget, *view: Any, metadata: tuple[Any, ...] = ()):
        self._budget, self._view = budget, view  # storage, offset, size, stride; and a dtype, where it is another
        self._is_negative = any(type(marks) is dict and marks.get("neg") for marks in metadata)

    def build(self, state: Any) -> None:
        """Of PyTorch before 0.4: what it is a view of, or a variable's tensor and flags; else flags."""
        if type(state) is tuple and len(state) == 4:
            self._view = state
        elif type(state) is tuple and len(state) == 5 and isinstance(state[0], _Tensor):
            self._view = state[0]._view

    def finish(self) -> Any:
        storage, offset, size, stride = self._view[:4] if len(self._view) >= 4 else (None, 0, (), ())
        if not isinstance(storage, _Storage):
            raise ValueError("a tensor without its storage")
        dtype = self._view[4] if len(self._view) > 4 else storage.dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError("a tensor without a type")
        if dtype not in NUMBERS:
            raise ValueError(f"a tensor of {describe_dtype(dtype)}")
        (offset,), size, stride = _sizes([offset], "offset"), _sizes(size), _sizes(stride, "stride")
        num_bytes = math.prod(size) * dtype.itemsize
        if not num_bytes:
            return torch.empty(size, dtype=dtype)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if (last + 1) * dtype.itemsize > len(storage.content):
            raise ValueError(f"of shape {size}, strides {stride} and offset {offset}, which leave its storage")
        self._budget.take(num_bytes)
        whole = storage.content[: len(storage.content) // dtype.itemsize * dtype.itemsize]
        if dtype == torch.bool:  # whatever the bytes are, each is True or False
            return whole.as_strided(size, stride, offset).ne(0)
        tensor = whole.view(dtype).as_strided(size, stride, offset)
        return -tensor if self._is_negative else tensor  # the imaginary part of conjugated numbers is so stored


def describe_dtype(dtype: Any) -> str:
    """For a message: what a type of numbers is that is not among ``NUMBERS``."""
    name = str(dtype).removeprefix("torch.")
    return "quantised numbers" if name.startswith("q") else "complex numbers" if "complex" in name else f"type {name}"


_STORAGES = {
    **{"Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16},
    **{"Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8},
    **{"Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128},
    **{"QInt8": torch.qint8, "QUInt8": torch.quint8, "QInt32": torch.qint32},
}
_PARAMETERS = (
    *("torch.nn.parameter.Parameter", "torch._utils._rebuild_parameter"),
    *("torch._utils._rebuild_parameter_with_state", "torch._utils._rebuild_device_tensor_from_cpu_tensor"),
)
# What is known, but makes no plain tensor: quantised, sparse, nested and meta tensors, kinds of quantisation, classes.
_REFUSED = (
    *(
        "torch._utils._rebuild_",
        "torch.nested._internal.nested_tensor.",
        "torch.per_",
        "torch.serialization._get_layout",
    ),
    *("numpy.ndarray", "torch.Tensor", "torch.storage.TypedStorage"),
)


class _Reader:
    """What names stand for in the pickles of one file; ``outer``: budget of the file that it stands in, at most one."""

    def __init__(self, size: int, outer: _Budget | None = None):
        self._size = size
        self._budget = budget = _Budget(size) if outer is None else outer
        self._storages: dict[str, _Storage] = {}
        self._find_stored: Callable[[_Storage, str], None] | None = None
        functions: dict[str, Callable[..., Any]] = {
            **dict.fromkeys(("_codecs.encode", "builtins.bytes"), self._encode),
            "builtins.bytearray": lambda *text: bytearray(self._encode(*text)),
            **dict.fromkeys(("builtins.set", "builtins.frozenset"), self._set),
            **dict.fromkeys(("collections.OrderedDict", "collections.Counter"), self._mapping),
            "numpy.dtype": _NumberType,
            "torch.Size": _sizes,
            "torch.device": _device,
            **dict.fromkeys(_PARAMETERS, lambda tensor=None, *_: _Tensor(budget) if tensor is None else tensor),
            "torch._utils._rebuild_tensor": lambda *view: _Tensor(budget, *view[:4]),
            "torch._utils._rebuild_tensor_v2": lambda *view: _Tensor(budget, *view[:4], metadata=view[6:]),
            "torch._utils._rebuild_tensor_v3": lambda *view: _Tensor(budget, *view[:4], view[6], metadata=view[7:]),
            # A tensor with attributes, which are left out.
            "torch._tensor._rebuild_from_type_v2": lambda function, _, arguments, *__: call(function, arguments),
        }
        if outer is None:
            functions["torch.storage._load_from_bytes"] = self._load_from_bytes
        for core in ("core", "_core"):  # NumPy 1 and NumPy 2
            functions[f"numpy.{core}.multiarray._reconstruct"] = lambda *_: _Array(budget)
            functions[f"numpy.{core}.multiarray.scalar"] = lambda number_type, content=b"": _Array(
                budget, content, number_type, (), is_number=True
            )
            functions[f"numpy.{core}.numeric._frombuffer"] = lambda *parts: _Array(budget, *parts[:5])
        self._names: dict[str, Any] = {name: Function(call) for name, call in functions.items()}
        self._names |= {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
        self._names["torch.storage.UntypedStorage"] = _StorageType(None)
        for place in ("torch", "torch.cuda"):
            for name, dtype in _STORAGES.items():
                self._names[f"{place}.{name}Storage"] = _StorageType(dtype)
                self._names[f"{place}.{name}Tensor"] = Function(lambda: _Tensor(budget))

    def load(self, file: BinaryIO) -> Any:
        """One pickle, with stand-ins in it."""
        return Unpickler(file, self._find, self._storage, self._budget.steps).load()

    def _find(self, name: str) -> Any:
        if name not in self._names and name.startswith(_REFUSED):
            return Refused(f"what {name} makes")
        return self._names.get(name)

    def _storage(self, description: Any) -> _Storage:
        fits = type(description) is tuple and len(description) >= 5 and description[0] == "storage"
        if not fits or not isinstance(description[1], _StorageType) or type(description[2]) not in (str, int):
            raise ValueError("it refers to what is no storage")
        if len(description) > 5 and description[5] is not None:
            raise ValueError("its storages are parts of others, as PyTorch wrote before version 0.4")
        key = str(description[2])
        if key not in self._storages:
            self._storages[key] = _Storage(description[1].dtype)
            if self._find_stored is not None:
                self._find_stored(self._storages[key], key)
        return self._storages[key]

    def load_torch_file(self, file: BinaryIO) -> Any:
        """What follows the magic number in a file of PyTorch before 1.6, with stand-ins in it."""
        version, system = self.load(file), self.load(file)
        if version != 1001 or type(system) is not dict:
            raise ValueError("it is of an unknown version of PyTorch's files")
        content, keys = self.load(file), self.load(file)
        fits = type(keys) is list and all(type(key) in (str, int) for key in keys)
        if not fits or sorted(map(str, keys)) != sorted(self._storages):
            raise ValueError("it lists other storages than its tensors have")
        for key in keys:
            storage = self._storages[str(key)]
            length = int.from_bytes(file.read(8), "little", signed=True)
            num_bytes, left = length * storage.width, self._size - file.tell()
            if not 0 <= num_bytes <= left:
                raise ValueError(f"a storage of {num_bytes} bytes is not in the {left} that are there")
            storage.fill(file, num_bytes, swaps=system.get("little_endian") is False)
        return content

    def load_zip(self, archive: zipfile.ZipFile) -> Any:
        """What PyTorch since 1.6 saved, with stand-ins in it."""
        sizes = _member_sizes(archive, self._size)
        names = [name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(names) != 1:
            raise ValueError(f"it is a zip archive with {len(names)} files data.pkl, expected one")
        folder = names[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in sizes:
            raise ValueError("it is a TorchScript program")
        swaps = f"{folder}byteorder" in sizes and archive.read(f"{folder}byteorder") == b"big"

        def fill(storage: _Storage, key: str) -> None:
            name = f"{folder}data/{key}"
            if name not in sizes:
                raise ValueError(f"it has no file {name}")
            with archive.open(name) as member:
                storage.fill(member, sizes[name], swaps=swaps)

        self._find_stored = fill
        return self.load(io.BytesIO(archive.read(names[0])))

    def _load_from_bytes(self, content: Any) -> Any:
        if type(content) not in (bytes, bytearray, str):
            raise ValueError("it holds a tensor without its bytes")
        inner = self._encode(content) if isinstance(content, str) else content
        self._budget.take(len(inner))
        file = io.BytesIO(inner)
        reader = _Reader(len(inner), self._budget)
        if reader.load(file) != MAGIC:
            raise ValueError("it holds a tensor whose bytes PyTorch did not write")
        return reader.load_torch_file(file)

    def _encode(self, text: Any = b"", encoding: Any = "latin1") -> Any:
        if type(text) not in (str, bytes, bytearray) or type(encoding) is not str or encoding not in _LATIN1:
            raise ValueError("it encodes what is no text")
        self._budget.take(len(text))
        return text.encode("latin1") if isinstance(text, str) else bytes(text)

    def _set(self, items: Any = ()) -> set[Any]:
        self._budget.take(64 * len(items))
        return update_set(set(), items)

    def _mapping(self, items: Any = ()) -> dict[Any, Any]:
        """Of an ``OrderedDict`` or a ``Counter``; Python 2 wrote pairs."""
        if type(items) is dict:
            return items
        if type(items) not in (list, tuple) or not all(type(p) in (list, tuple) and len(p) == 2 for p in items):
            raise ValueError("it makes a mapping of what are no pairs")
        self._budget.take(64 * len(items))
        return set_items({}, [part for pair in items for part in pair])


def _device(kind: Any, *index: Any) -> torch.device:
    if type(kind) is not str or not all(type(number) is int for number in index):
        raise ValueError("it names no device")
    return torch.device(kind, *index)


def _member_sizes(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """The sizes of an archive's files by name, which lie one after another and are not compressed."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    ends = [*(member.header_offset for member in members[1:]), size]
    for member, end in zip(members, ends):
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ValueError(f"its file {member.filename} is compressed, which PyTorch does not do")
        if not member.CRC:  # PyTorch was told not to count them
            member.CRC = None  # type: ignore[assignment]
        if member.header_offset + 30 + member.file_size > end:  # 30 bytes: its own header, without its name
            raise ValueError(f"its file {member.filename} overlaps with others")
    if len({member.filename for member in members}) != len(members):
        raise ValueError("two of its files have one name")
    return {member.filename: member.file_size for member in members}


class _File(io.BufferedReader):
    """What says that it is huge takes no more memory than the file has bytes."""

    def __init__(self, filename: str):
        super().__init__(io.FileIO(filename))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self.size if size is None else min(size, self.size))


def read_torch_or_pickle(filename: str) -> tuple[Any, bool]:
    """Read what ``torch.save`` or ``pickle.dump`` wrote.

    Args:
        filename: of a file.

    Returns:
        Plain containers, numbers, text, arrays and tensors; and whether ``torch.save`` wrote it.

    Raises:
        ForeignNameError: it asks for more.
        Exception: of many kinds, where it is damaged.
    """
    with _File(filename) as file:
        reader = _Reader(file.size)
        if file.peek(2)[:2] == b"PK":
            with zipfile.ZipFile(file) as archive:
                return finish(reader.load_zip(archive)), True
        content = reader.load(file)
        is_torch = type(content) is int and content == MAGIC
        return finish(reader.load_torch_file(file) if is_torch else content), is_torch
