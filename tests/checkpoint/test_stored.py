"""What weights files hold, by value: what is read, from whatever wrote it, and what is refused by file and entry."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from maskformer.checkpoint import read_weights
from maskformer.structures import InputError

NUMBERS = ["?", "i1", "<i2", ">i4", "i8", "u1", "u2", ">u8", "f2", "<f4", ">f8"]
DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float64]
with contextlib.suppress(KeyError):  # PyTorch 2.4 has this type, but cannot save it
    torch.save(torch.zeros(1, dtype=torch.uint16), io.BytesIO())
    DTYPES.append(torch.uint16)
PICKLE, STATE = b"\x80\x02", b"\x80\x02}X\x05\0\0\0model}X\x01\0\0\0a%b" + b"ss."


def read(path: Path, content: Any, protocol: int = 2) -> dict[str, Any]:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return read_weights(str(path))


def save(content: Any, path: Path, kind: str) -> Path:
    """As PyTorch since 1.6, as PyTorch before, or as a pickle of tensors."""
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_of_plain_numbers_are_read_by_value(tmp_path: Path, core: str, protocol: int):
    arrays = {name: np.arange(6).reshape(2, 3).astype(name) for name in NUMBERS}
    arrays |= {
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.array(2.5),
        "none": np.ones((0, 3)),
    }
    arrays["permuted"] = np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2)
    content = pickle.dumps({"model": arrays, "scale": np.float32(0.5)}, protocol)
    if protocol < 4 and core == "numpy.core":  # later protocols write the length of the name
        content = content.replace(b"cnumpy._core", b"cnumpy.core")
    found = read(tmp_path / "model.pkl", content)
    assert found["scale"] == np.float32(0.5) and type(found["scale"]) is np.float32
    for name, array in arrays.items():
        expected = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        assert found["model"][name].dtype == expected.dtype and torch.equal(found["model"][name], expected), name


def test_array_that_python_2_pickled_for_caffe2_is_read(tmp_path: Path):
    raw = np.array([1.5, -200.0], "<f4").tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85U\x01btR(K\x01K\x02\x85cnumpy\ndtype\n"
        b"(U\x02f4K\0K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89U\x08" + raw + b"tb"
    )
    momentum = b"U\x0fconv_w_momentum" + array
    found = read(tmp_path / "R-50.pkl", PICKLE + b"}U\x05blobs}(U\x06conv_w" + array + momentum + b"us.")
    assert {name: value.tolist() for name, value in found["model"].items()} == {"conv_w": [1.5, -200.0]}
    assert found["__author__"] == "Caffe2" and found["matching_heuristics"]


def test_text_of_python_2_in_the_oldest_protocol_is_read(tmp_path: Path):
    raw = repr(np.array([1.5, -200.0], "<f4").tobytes())[1:].encode()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n"
        b"(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS" + raw + b"\ntb"
    )
    assert read(tmp_path / "R-50.pkl", b"(dS'w'\n" + array + b"s.")["model"]["w"].tolist() == [1.5, -200.0]


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_tensors_are_read_by_value(tmp_path: Path, kind: str):
    state = OrderedDict((str(dtype), torch.arange(6).reshape(2, 3).to(dtype)) for dtype in DTYPES)
    base = torch.arange(24.0)
    state |= {"view": base[4:16].reshape(3, 4).t(), "again": base, "parameter": nn.Parameter(torch.ones(2))}
    state |= {"scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "wide": torch.ones(1).expand(2, 3)}
    state["attribute"] = torch.ones(2)
    state["attribute"].note = "kept by PyTorch, not by us"
    rest = {"epochs": Counter({3: 1}), "pair": (1, 2.5, None, True), "names": {"a"}, "bytes": b"\xff", "number": 2**70}
    found = read_weights(str(save({"model": state, **rest}, tmp_path / "model.pkl", kind)))
    for name, tensor in state.items():
        assert found["model"][name].dtype == tensor.dtype and torch.equal(found["model"][name], tensor.detach()), name
    assert {name: found[name] for name in rest} == rest


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_tensor_that_is_stored_with_the_other_sign_is_read(tmp_path: Path, kind: str):
    pairs = torch.view_as_complex(torch.tensor([[1.0, 2.0], [3.0, -4.0]]))
    found = read_weights(str(save({"a": pairs.conj().imag}, tmp_path / "model.pkl", kind)))
    assert found["model"]["a"].tolist() == [-2.0, 4.0]


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this PyTorch always writes them")
def test_file_without_check_sums_of_its_parts_is_read_and_a_damaged_one_is_not(tmp_path: Path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3.0)}, tmp_path / "model.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(str(tmp_path / "model.pth"))["model"]["a"].tolist() == [0.0, 1.0, 2.0]
    torch.save({"a": torch.arange(3.0)}, tmp_path / "model.pth")
    content = (tmp_path / "model.pth").read_bytes().replace(struct.pack("<f", 2.0), struct.pack("<f", 3.0))
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pth cannot be read: .*data/0"):
        read_weights(str(tmp_path / "model.pth"))


def test_storage_that_two_tensors_share_is_shared(tmp_path: Path):
    weight = torch.zeros(4)
    found = read_weights(str(save({"a": weight, "b": weight[2:]}, tmp_path / "tied.pth", "zip")))["model"]
    found["a"][2] = 7
    assert found["b"].tolist() == [7, 0]


def test_training_goes_on_from_what_an_optimiser_saved(tmp_path: Path):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "model.pth")
    found = read_weights(str(tmp_path / "model.pth"))["optimizer"]
    assert found["param_groups"] == optimizer.state_dict()["param_groups"]
    assert all(
        torch.equal(found["state"][i][k], v) for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()
    )


def test_parameters_of_the_first_pytorch_are_read(tmp_path: Path):
    """Its tensors were made by their class and given a state; its parameters hold a tensor and flags."""
    buffer = io.BytesIO()
    torch.save({"a": torch.tensor([1.0, 2.0])}, buffer, _use_new_zipfile_serialization=False)
    content = buffer.getvalue()
    start, end = content.index(b"ctorch._utils\n_rebuild_tensor_v2\n"), content.index(b"ccollections\nOrderedDict")
    view = content[content.index(b"((", start) + 2 : end].replace(b"\x89", b"")  # storage, offset, size, stride
    tensor = b"ctorch\nFloatTensor\n)R((" + view + b"tb"
    parameter = b"ctorch.nn.parameter\nParameter\n)\x81(" + tensor + b"NN\x88\x89tb"
    old = content[:start] + parameter + content[content.index(b"s.", end) :]
    (tmp_path / "resnet.pth").write_bytes(old)
    assert read_weights(str(tmp_path / "resnet.pth"))["model"]["a"].tolist() == [1.0, 2.0]


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "objects": (lambda: np.array([None, "x"], object), "array of objects"),
    "object number": (lambda: np.array([[1]], object), "array of objects"),
    "text": (lambda: np.array(["a"]), "array of text"),
    "bytes": (lambda: np.array([b"a"]), "array of text"),
    "dates": (lambda: np.array(["2001-01-01"], "M8[D]"), "array of dates"),
    "durations": (lambda: np.array([1], "m8[s]"), "array of durations"),
    "long doubles": (lambda: np.ones(1, np.longdouble), "array of long doubles"),
    "records": (lambda: np.zeros(1, [("a", "f4")]), "array of records"),
    "complex array": (lambda: np.ones(1, np.complex64), "complex numbers"),
    "complex tensor": (lambda: torch.ones(1, dtype=torch.complex64), "complex numbers"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(1), 1.0, 0, torch.qint8), "qtensor"),
    "sparse": (lambda: torch.eye(2).to_sparse(), "sparse"),
    "meta": (lambda: torch.ones(2, device="meta"), "meta"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]), "nested"),
    "float8": (lambda: torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "storage": (lambda: torch.ones(2).untyped_storage(), "storage"),
    "number": (lambda: 3, "type int"),
    "type": (lambda: np.dtype("f4"), "type"),
    "list": (lambda: [torch.ones(1)], "type list"),
    "big number": (lambda: 2**5000, "5001 bits"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "pickle"])
@pytest.mark.parametrize("what", REFUSED)
def test_entry_that_is_no_plain_tensor_is_named(tmp_path: Path, what: str, kind: str):
    make, fact = REFUSED[what]
    path = save({"model": {"good": torch.ones(1), "bad.weight": make()}}, tmp_path / "model.pkl", kind)
    with pytest.raises(InputError, match=rf"model\.pkl.*bad\.weight.*{fact}"):
        read_weights(str(path))


@pytest.mark.parametrize("key", [5, None, ("a", 1), 2**80, b"a"])
def test_key_that_is_no_text_is_named(tmp_path: Path, key: Any):
    for content in ({"model": {key: np.ones(1), "a": np.ones(1)}}, {"a": np.ones(1), key: np.ones(1)}):
        with pytest.raises(InputError, match=rf"model\.pkl.*{type(key).__name__}"):
            read(tmp_path / "model.pkl", content)


def test_more_parameters_than_any_model_has_are_refused(tmp_path: Path):
    """Detectron2 compares every one's name with every one of the model's, which took minutes and gigabytes."""
    one = np.ones(1, np.float32)
    with pytest.raises(InputError, match=r"model\.pkl holds 30000 parameters"):
        read(tmp_path / "model.pkl", {str(index): one for index in range(30_000)})


@pytest.mark.parametrize("dtype", ["C64", "F8_E4M3"])
def test_safetensors_of_other_numbers_are_named(tmp_path: Path, dtype: str):
    size = 8 if dtype == "C64" else 1
    header = b'{"bad.weight":{"dtype":"%s","shape":[1],"data_offsets":[0,%d]}}' % (dtype.encode(), size)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))
    with pytest.raises(InputError, match=r"model\.safetensors.*bad\.weight.*(complex|float8)"):
        read_weights(str(tmp_path / "model.safetensors"))


# --- attacks: a state is looked at, and nothing takes more memory or time than its file gives reason for ---


def array_of(number_type: bytes, raw: bytes = b"C\x08" + bytes(8), shape: bytes = b"K\x01\x85") -> bytes:
    """The operations of an array whose type is made by others."""
    return (
        b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R(K\x01"
        + shape
        + number_type
        + b"\x89"
    ) + (raw + b"tb")


def dtype_of(name: bytes, state: bytes) -> bytes:
    return b"cnumpy\ndtype\nU" + bytes([len(name)]) + name + b"\x89\x88\x87R" + state


PLAIN = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
FIELDS = b"(K\x03U\x01|N(U\x01at}U\x01a" + dtype_of(b"O8", b"") + b"K\0\x86sK\x08K\x01K\x1btb"
STATES = {
    # NumPy took these eight bytes for the address of an object, and the process ended.
    "objects without their flag": b"cnumpy._core.multiarray\nscalar\n"
    + dtype_of(b"O8", PLAIN.replace(b"<", b"|"))
    + b"C\x08AAAAAAAA\x86R",
    "fields of objects": array_of(dtype_of(b"V8", FIELDS)),
    "fields of objects in a number": array_of(dtype_of(b"f8", FIELDS)),
    "flags of objects": array_of(dtype_of(b"f8", PLAIN.replace(b"K\0tb", b"K\x3ftb"))),
    "other size": array_of(dtype_of(b"f8", PLAIN.replace(b"J\xff\xff\xff\xff", b"K\x7f"))),
    "subarray": array_of(dtype_of(b"f8", PLAIN.replace(b"<NNN", b"<" + dtype_of(b"O8", b"") + b"K\x02\x86NN"))),
    "byte order": array_of(dtype_of(b"f8", PLAIN.replace(b"<", b"Q"))),
    "no state": array_of(dtype_of(b"f8", b"Nb")),
    "type is a list": array_of(b"]"),
    "type is a tuple in a tuple": array_of(dtype_of(b"f8", b"(((tttb")),
    "too few bytes": array_of(dtype_of(b"f8", PLAIN), raw=b"C\x07" + bytes(7)),
    "shape too large": array_of(dtype_of(b"f8", PLAIN), shape=b"J\xff\xff\xff\x7f\x85"),
    "shape negative": array_of(dtype_of(b"f8", PLAIN), shape=b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"),
    "shape of text": array_of(dtype_of(b"f8", PLAIN), shape=b"U\x011\x85"),
    "objects as a list": array_of(dtype_of(b"O8", b""), raw=b"]N\x61"),
    "number of objects": b"cnumpy._core.multiarray\nscalar\n" + dtype_of(b"O8", b"") + b"K\x01\x86R",
    "number of too few bytes": b"cnumpy._core.multiarray\nscalar\n" + dtype_of(b"f8", PLAIN) + b"C\x01a\x86R",
    "buffer": b"(cnumpy._core.numeric\n_frombuffer\no",
    "state of a class": b"cnumpy\nndarray\n}U\x01aK\x01sb",
    "bytes of a number": b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
    "attribute of a function": b"cnumpy\ndtype\n}U\x04callK\x01sb",
    "call of a type": b"ctorch\nfloat32\n)R",
    "encoding": b"c_codecs\nencode\nU\x01aU\x03hex\x86R",
}


@pytest.mark.parametrize("what", STATES)
def test_state_that_no_array_has_is_refused(tmp_path: Path, what: str):
    content = (
        PICKLE + b"}U\x05model}(U\x04goodcnumpy._core.multiarray\nscalar\n" + dtype_of(b"u1", PLAIN) + b"C\x01a\x86R"
    )
    with pytest.raises(
        InputError, match=r"model\.pkl cannot be read: (its entry \['model'\]\['bad'\]|it (calls|encodes))"
    ):
        read(tmp_path / "model.pkl", content + b"U\x03bad" + STATES[what] + b"us.")


def test_byte_order_is_that_of_the_state_as_in_numpy(tmp_path: Path):
    raw = b"C\x08" + np.array([1.5], ">f8").tobytes()
    content = PICKLE + b"}U\x04good" + array_of(dtype_of(b"<f8", PLAIN.replace(b"<", b">")), raw) + b"s."
    assert pickle.loads(content)["good"].tolist() == [1.5]
    assert read(tmp_path / "model.pkl", content)["model"]["good"].tolist() == [1.5]


def test_array_of_the_attacks_is_good_without_them(tmp_path: Path):
    """Else they would be refused for how they are written."""
    good = PICKLE + b"}U\x04good" + array_of(dtype_of(b"f8", PLAIN)) + b"s."
    assert read(tmp_path / "model.pkl", good)["model"]["good"].tolist() == [0.0]


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (5,), (1,)), (3, (2,), (1,)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,)), (0, (2,), (2**62,)),
     (0, (-1,), (1,)), (0, ("2",), (1,)), (2**70, (1,), (1,)), (0, (1,) * 60, (1,) * 60), (0, (10**7, 10**7), (0, 0))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_tensor_that_leaves_its_storage_is_refused(tmp_path: Path, kind: str, offset: Any, size: Any, stride: Any):
    class Outside:
        def __init__(self) -> None:
            self.storage = torch.arange(4.0)._typed_storage()

        def __reduce__(self) -> Any:
            arguments = (self.storage, offset, size, stride, False, OrderedDict())
            return torch._utils._rebuild_tensor_v2, arguments

    path = save({"model": {"good": torch.ones(1), "bad": Outside()}}, tmp_path / "model.pkl", kind)
    with pytest.raises(InputError, match=r"model\.pkl.*bad"):
        read_weights(str(path))


def test_file_in_a_file_in_a_file_is_refused(tmp_path: Path):
    class Inner:
        def __init__(self, content: Any):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=False)
            self.content = buffer.getvalue()

        def __reduce__(self) -> Any:
            return torch.storage._load_from_bytes, (self.content,)

    with pytest.raises(InputError, match=r"it holds torch\.storage\._load_from_bytes"):
        read(tmp_path / "model.pkl", {"a": Inner(Inner(torch.ones(1)))})


def zip_of(path: Path, members: dict[str, bytes], **options: Any) -> None:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)


def write_floods(folder: Path) -> None:
    """Files that made, or would make, gigabytes, hours or a crash of some kilobytes."""

    def value(operations: bytes) -> bytes:
        return PICKLE + b"}X\x01\0\0\0a" + operations + b"s."

    deep = b")" + b"\x85" * 200_000
    doubled = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
    shared = b"0".join(
        [b"(B" + struct.pack("<I", 10**6) + bytes(10**6) + b"q\0", dtype_of(b"u1", PLAIN) + b"q\x01", b""]
    )
    again = b"cnumpy.core.numeric\n_frombuffer\n(h\0h\x01J" + struct.pack("<i", 10**6) + b"\x85U\x01CtR"
    text = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\0"
    pairs = b"((" + b"K\x01K\x02\x86" * 50_000 + b"lq\0"
    indices = [struct.pack("<I", index) for index in range(30_000)]
    of_one_hash = [(index * (2**61 - 1)).to_bytes(12, "little") for index in range(1, 80_000)]
    legacy = io.BytesIO()
    torch.save({"a": torch.zeros(4)}, legacy, _use_new_zipfile_serialization=False)
    head, _, tail = legacy.getvalue().rpartition((4).to_bytes(8, "little"))
    header = (
        b"{" + b",".join(b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(200_000)) + b"}"
    )
    wide = io.BytesIO()  # tensors of a megabyte whose bytes are one, each in the file's bytes once more
    torch.save(torch.ones(1, dtype=torch.bool).expand(2**20), wide, _use_new_zipfile_serialization=False)
    inner = b"(ctorch.storage\n_load_from_bytes\nq\1B" + struct.pack("<I", len(wide.getvalue())) + wide.getvalue()
    inner += b"\x85q\2R" + b"h\1h\2R" * 1000 + b"l"
    files = {
        "memo.pkl": PICKLE + b"Nr" + struct.pack("<I", 2**30) + b".",
        "key.pkl": PICKLE + b"}" + deep + b"K\x01s.",
        "value.pkl": value(deep),
        "doubled.pkl": value(b")" + doubled),
        "doubled_key.pkl": PICKLE + b"})" + doubled + b"K\x01s.",
        "chain.pkl": value(b"()" + b"".join(b"r%bj%b\x85" % (index, index) for index in indices) + b"l"),
        "loop.pkl": value(b"]q\0h\0a"),
        "lists.pkl": value(b"(" + b"]" * 600_000 + b"l"),
        "text.pkl": b"\x80\x04\x8d" + struct.pack("<Q", 2**40),
        "bytes.pkl": b"\x80\x04\x8e" + struct.pack("<Q", 2**34),
        "buffer.pkl": b"\x80\x05\x96" + struct.pack("<Q", 2**34),
        "number.pkl": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1),
        "keys.pkl": PICKLE + b"}(" + b"".join(b"\x8a\x0c%bN" % key for key in of_one_hash) + b"u.",
        "arrays.pkl": value(shared + again * 10_000 + b"l"),
        "encoded.pkl": value(b"(" + text + b"c_codecs\nencode\nq\x01" + b"h\x01h\0U\x06latin1\x86R" * 10_000 + b"l"),
        "mappings.pkl": value(pairs + b"ccollections\nOrderedDict\nh\0\x85R" * 10_000 + b"l"),
        "inner.pkl": value(inner),
        "storage.pth": head + (2**40).to_bytes(8, "little") + tail,
        "header.safetensors": struct.pack("<Q", 2**33) + b'{"a":' + b" " * 100,
        "empty.safetensors": struct.pack("<Q", len(header)) + header,
        "deep.safetensors": struct.pack("<Q", 200_005) + b'{"a":' + b"[" * 200_000,
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_bytes(content)
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(2**26, dtype=torch.uint8)[:1]}, whole)
    with zipfile.ZipFile(whole) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    zip_of(folder / "inflated.pth", members, compression=zipfile.ZIP_DEFLATED, compresslevel=1)
    zip_of(folder / "key.pth", {"data.pkl": files["key.pkl"], "version": b"3\n"})
    zip_of(folder / "many.pth", {str(index): b"" for index in range(30_000)})


READ_ALL = """
import sys, time
from pathlib import Path
from maskformer.checkpoint import read_weights
from maskformer.structures import InputError
import safetensors.torch, zipfile
for path in sorted(Path(sys.argv[1]).iterdir()):
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    peaks = lambda: [int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
    before, begin = peaks(), time.process_time()
    try:
        read_weights(str(path))
        answer = "accepted"
    except InputError as error:
        answer = str(error)
    seconds = time.process_time() - begin
    print(path.name, path.stat().st_size, peaks() - before, seconds, path.name in answer, flush=True)
"""


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="peaks of memory are counted by Linux alone"
)
def test_no_file_takes_more_memory_or_time_than_its_size_gives_reason_for(tmp_path: Path):
    write_floods(tmp_path)
    process = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path], capture_output=True, text=True, timeout=500)
    lines = [line.split() for line in process.stdout.splitlines()]
    assert [line[0] for line in lines] == sorted(path.name for path in tmp_path.iterdir()), process.stderr[-2000:]
    for name, size, memory, seconds, is_named in lines:
        assert is_named == "True", name
        assert int(memory) < 60 * 2**20 + 12 * int(size), (name, size, memory)
        assert float(seconds) < 10, (name, seconds)


@pytest.mark.parametrize(
    "change", ["compressed", "overlapping", "no data.pkl", "two data.pkl", "program", "no storage"]
)
def test_archive_that_pytorch_does_not_write_is_refused(tmp_path: Path, change: str):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    zip_of(tmp_path / "model.pth", members)
    assert read_weights(str(tmp_path / "model.pth"))["model"]["a"].sum() == 499500  # so stored, it is good
    if change == "overlapping":
        content = (tmp_path / "model.pth").read_bytes()
        place = content.rindex(b"archive/data/0") - 4  # of the header's offset, in the directory at the end
        (tmp_path / "model.pth").write_bytes(content[:place] + (30).to_bytes(4, "little") + content[place + 4 :])
    else:
        extra = {"two data.pkl": "../other/data.pkl", "program": "constants.pkl"}.get(change)
        lost = {"no data.pkl": "data.pkl", "no storage": "data/0"}.get(change)
        members = {
            name: content for name, content in {**members, **({extra: b""} if extra else {})}.items() if name != lost
        }
        if change == "two data.pkl":
            members = {name.replace("../other/", "") if name == extra else name: c for name, c in members.items()}
        compression = zipfile.ZIP_DEFLATED if change == "compressed" else zipfile.ZIP_STORED
        zip_of(tmp_path / "model.pth", members, compression=compression)
        if change == "two data.pkl":
            with zipfile.ZipFile(tmp_path / "model.pth", "a") as archive:
                archive.writestr("other/data.pkl", b"\x80\x02}.")
    with pytest.raises(InputError, match=r"model\.pth cannot be read"):
        read_weights(str(tmp_path / "model.pth"))


def test_file_of_another_byte_order_is_read(tmp_path: Path):
    torch.save({"a": torch.tensor([1.5, -2.0]), "b": torch.tensor([1, 2], dtype=torch.uint8)}, tmp_path / "model.pth")
    with zipfile.ZipFile(tmp_path / "model.pth") as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    members |= {"byteorder": b"big", "data/0": np.array([1.5, -2.0], ">f4").tobytes()}
    zip_of(tmp_path / "model.pth", members)
    found = read_weights(str(tmp_path / "model.pth"))["model"]
    assert found["a"].tolist() == [1.5, -2.0] and found["b"].tolist() == [1, 2]
