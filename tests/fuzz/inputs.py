"""Hypothesis strategies: valid files with damage that knows their structure, and texts that no one would write."""

from __future__ import annotations

import copy
import json
import pickle
import pickletools
import random
import zlib
from collections.abc import Sequence
from typing import Any

import yaml
from hypothesis import strategies as st

NASTY_BYTES = (
    b"\x00",
    b"\xff" * 4,
    b"\x7f\xff\xff\xff",
    b"\x80\x00\x00\x00",
    b"\xff" * 8,
    b"IEND",
    b"PK\x03\x04",
    b"%n",
)
NASTY_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**40, -(2**70), 1e308, -0.5, float("nan"), float("inf"), float("-inf")),
    *("", "a", "\0", "../../etc/passwd", "/etc/passwd", "a/../../b", "\ud800", "é" * 300, "x" * 5000, "1e9", "[[", "{"),
    *("os.system('x')", "__import__('os')", "${HOME}", "~", [], {}, [[]], [None], {"a": 1}, [float("nan")] * 4),
    *([0] * 6, [1e30] * 8, [-5, 3], {"size": [4, 6], "counts": "zzzz"}, {"size": [2**20, 2**20], "counts": [1]}),
    *({"size": [4, 6], "counts": [2**40]}, {"size": [], "counts": ""}, {"size": [4, 6], "counts": "PPPPPPPPPPPPP0"}),
)


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A valid file with bytes flipped, cut, doubled, replaced, or out of another file."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("flip", "cut", "cut out", "double", "nasty", "splice", "insert")))
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        end = min(len(content), start + draw(st.integers(1, 64)))
        if kind == "flip" and content:
            content[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[start:]
        elif kind == "cut out":
            del content[start:end]
        elif kind == "double":
            content[start:start] = content[start:end]
        elif kind == "nasty":
            nasty = draw(st.sampled_from(NASTY_BYTES))
            content[start : start + len(nasty)] = nasty
        elif kind == "splice":
            other = draw(st.sampled_from(seeds))
            cut = draw(st.integers(0, len(other)))
            content[start:] = other[cut:]
        else:
            content[start:start] = draw(st.binary(max_size=16))
    return bytes(content)


@st.composite
def damaged_png(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """A PNG whose chunks are damaged and have right checksums, so that the damage reaches the decoder."""
    content = draw(st.sampled_from([seed for seed in seeds if seed.startswith(b"\x89PNG")]))
    chunks, position = [], 8
    while position < len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        chunks.append((content[position + 4 : position + 8], content[position + 8 : position + 8 + length]))
        position += 12 + length
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(chunks) - 1))
        name, data = chunks[index]
        if draw(st.booleans()) and name == b"IDAT":
            raw = bytearray(draw(st.binary(max_size=200)))
            data = zlib.compress(raw)
        else:
            data = draw(damaged([data or b"\0"]))
        name = draw(st.sampled_from((name, b"PLTE", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fcTL", b"gAMA")))
        chunks[index : index + draw(st.integers(0, 1))] = [(name, data)]
    return content[:8] + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big") for name, data in chunks
    )


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


@st.composite
def changed(draw: st.DrawFn, seeds: Sequence[Any]) -> Any:
    """A nested value of which parts are replaced, removed or doubled."""
    root = [copy.deepcopy(draw(st.sampled_from(seeds)))]
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(_places(root)[1:] or [(0,)]))
        parent: Any = root
        for key in place[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(("replace", "replace", "remove", "double", "move", "scalar")))
        if kind == "remove" and len(place) > 1:
            del parent[place[-1]]
        elif kind == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[place[-1]]))
        elif kind == "move":
            other: Any = root
            for key in draw(st.sampled_from(_places(root))):
                other = other[key]
            parent[place[-1]] = copy.deepcopy(other)
        elif kind == "scalar":
            parent[place[-1]] = draw(st.one_of(st.integers(), st.floats(), st.text(max_size=8), st.booleans()))
        else:
            parent[place[-1]] = copy.deepcopy(draw(st.sampled_from(NASTY_VALUES)))
    return root[0]


@st.composite
def json_files(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """JSON of nearly the right form; now and then, text that is none or is nested very deeply."""
    kind = draw(st.integers(0, 19))
    if kind == 0:
        depth = draw(st.sampled_from((100, 5_000, 200_000)))
        return draw(st.sampled_from((b"[", b'{"a":'))) * depth
    if kind <= 3:
        return draw(damaged(seeds))
    return json.dumps(draw(changed([json.loads(seed) for seed in seeds]))).encode("utf-8", "surrogatepass")


_YAML_TAGS = (
    *("!!python/object/apply:os.system [touch x]", "!!python/name:os.system", "!!python/object/new:os.system [x]"),
    *(
        "!!python/object/apply:eval [\"__import__('os').system('x')\"]",
        "!!python/module:os",
        "!!binary '!'",
        "!!set {a}",
    ),
    *("!!python/object/apply:eval ['[int(x * 0.1 * 512) for x in range(5, 999999999)]']", "!!omap [a: 1]", "!x y"),
    *("!!timestamp 2001-99-99", "2001-13-45", "0x", "1:99:1e9", "!!int '0b'", "!!float x", "!!null x", "<<: [1]"),
    *("*unknown", "? [a]\n  : b", "{[1]: 2}", "&a [*a]", "&a {b: *a}", "9" * 5000, "(" * 300, "[" * 3000, "- " * 3000),
)
_YAML_KEYS = (
    *("MODEL", "MODEL.WEIGHTS", "SOLVER", "INPUT", "DATASETS", "_BASE_", "VERSION", "1", "null", "DATASETS.OWN", "<<"),
    *("OUTPUT_DIR", "SEED", "true", "''", "2001-01-01", "1.5", "__class__", "MODEL.DEVICE"),
)
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@st.composite
def yaml_files(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Configuration files with values of wrong types, foreign tags, aliases of aliases, and broken syntax."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return LAUGHS[: draw(st.integers(1, len(LAUGHS)))].encode()
    if kind <= 2:
        return draw(damaged(seeds))
    if kind <= 5:
        lines = st.tuples(st.sampled_from(_YAML_KEYS), st.sampled_from(_YAML_TAGS))
        return "\n".join(f"{key}: {value}" for key, value in draw(st.lists(lines, min_size=1, max_size=3))).encode()
    values = [value for seed in seeds if b"!!" not in seed for value in yaml.safe_load_all(seed)]
    return yaml.safe_dump(draw(changed(values)), allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")


_CALLABLES = (
    *("os system", "posix system", "builtins eval", "builtins exec", "builtins getattr", "subprocess Popen"),
    *("torch.storage _load_from_bytes", "torch._utils _rebuild_tensor_v2", "numpy.core.multiarray _reconstruct"),
    *("numpy ndarray", "numpy dtype", "_codecs encode", "collections OrderedDict", "torch load", "runpy run_path"),
    *("numpy.core.multiarray scalar", "builtins __import__", "torch.hub load", "numpy._core.numeric _frombuffer"),
    *("torch._utils _rebuild_parameter", "torch FloatStorage", "torch._dynamo.guards GuardBuilder.get", "pickle loads"),
)
_ARGUMENTS = (b"(S'x'\ntR", b")R", b"(I1\nI2\ntR", b"(S'touch x'\nlp0\nR", b"}b", b"(S'touch x'\no", b"N\x85R", b"\x81")


@st.composite
def pickles(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Pickles that call what they name, pickles of random operations, and damaged ones."""
    kind = draw(st.integers(0, 3))
    if kind == 0:
        return draw(damaged(seeds))
    if kind == 1:
        parts = [b"\x80\x02"]
        for _ in range(draw(st.integers(1, 4))):
            module, _, name = draw(st.sampled_from(_CALLABLES)).partition(" ")
            parts += [b"c", module.encode(), b"\n", name.encode(), b"\n", draw(st.sampled_from(_ARGUMENTS))]
        return b"".join(parts) + b"."
    if kind == 2:
        generator = random.Random(draw(st.integers(0, 2**32)))
        codes = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
        operations = b"".join(generator.choice(codes) + generator.randbytes(generator.randint(0, 4)) for _ in range(12))
        return b"\x80\x04" + operations + b"."
    content = draw(changed([{"model": {"weight": [1.0, 2.0]}, "__author__": "x", "blobs": {"a": 1}}]))
    return pickle.dumps(content, protocol=draw(st.integers(2, 5)))


# What a state may be made of: what stands in good ones, and what does not.
_STATES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**62, -(2**70), 0.5, "", "|", ">", "<", "F", "f8", "O8", "V8", "U3", "f16", "M8"),
    *(
        "latin1",
        "hex",
        "storage",
        "cpu",
        "0",
        b"",
        b"\0" * 8,
        b"\0" * 48,
        (),
        (2, 3),
        (2**40,),
        (-1, 2),
        [None],
        {"a": (1, 2)},
    ),
    *(
        (3, "<", None, None, None, -1, -1, 0),
        (3, "|", None, ("a",), {"a": 1}, 8, 1, 27),
        (1, (6,), 0, False, b"\0" * 48),
    ),
)


def _operations(value: Any) -> bytes:
    """The operations of a pickle that make a value, without the first (protocol) and the last (stop)."""
    return pickle.dumps(value, protocol=3)[2:-1]


_ALLOWED = (
    *("numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct", "numpy._core.multiarray scalar"),
    *("numpy._core.numeric _frombuffer", "_codecs encode", "builtins bytearray", "builtins set", "builtins complex"),
    *("collections OrderedDict", "collections Counter", "torch Size", "torch device", "torch FloatStorage"),
    *("torch FloatTensor", "torch float32", "torch.nn.parameter Parameter", "torch.storage _load_from_bytes"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3", "torch._utils _rebuild_parameter"),
    *("torch._tensor _rebuild_from_type_v2", "torch._utils _rebuild_sparse_tensor", "torch.storage UntypedStorage"),
)


@st.composite
def states(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """Pickles that hand to names that are allowed, in calls and as states, what other good ones and none have."""
    made = [_operations(value) for value in _STATES]
    if draw(st.booleans()):  # a good pickle of which single values are others
        content = draw(st.sampled_from(seeds))
        operations = list(pickletools.genops(content))
        ends = [*(place for _, _, place in operations[1:]), len(content)]
        parts = [content[place:end] for (_, _, place), end in zip(operations, ends)]
        values = [index for index, (info, *_) in enumerate(operations) if info.stack_after and not info.stack_before]
        for index in draw(st.lists(st.sampled_from(values), min_size=1, max_size=3)):
            parts[index] = draw(st.sampled_from(made))
        return b"".join(parts)
    for _ in range(draw(st.integers(1, 6))):
        function = b"c" + draw(st.sampled_from(_ALLOWED)).replace(" ", "\n").encode() + b"\n"
        tuples = st.lists(st.sampled_from(made), max_size=8).map(lambda chosen: b"(" + b"".join(chosen) + b"t")
        call = function + draw(tuples) + draw(st.sampled_from((b"R", b"\x81")))
        made += [function, call, *[call + draw(st.one_of(tuples, st.sampled_from(made))) + b"b"] * 3]
    entries = draw(st.lists(st.sampled_from(made[len(_STATES) :]), min_size=1, max_size=3))
    keys = [_operations(key) for key in ("weight", "bias", "model")]
    return b"\x80\x03}(" + b"".join(key + entry for key, entry in zip(keys, entries)) + b"u."


WORDS = (
    *(
        "--config-file",
        "--eval-only",
        "--resume",
        "--num-gpus",
        "--num-machines",
        "--machine-rank",
        "--dist-url",
        "--help",
    ),
    *(
        "absent.yaml",
        "base.yaml",
        ".",
        "",
        "\0",
        "-",
        "--",
        "1",
        "-1",
        "x" * 5000,
        "é\ud800",
        "auto",
        "tcp://[",
        "/dev/null",
    ),
    *(
        "MODEL.DEVICE",
        "SOLVER.BASE_LR",
        "DATASETS.TRAIN",
        "MODEL",
        "INPUT.MIN_SIZE_TRAIN",
        "DATASETS.OWN",
        "OUTPUT_DIR",
    ),
    *(
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
        "VERSION",
        "MODEL.SWIN.QK_SCALE",
        "NOT.A.KEY",
        "SOLVER..X",
        "._",
        "MODEL.WEIGHTS",
    ),
    *(
        "cpu",
        "sdaa",
        "cuda:99",
        "0.1",
        "nan",
        "1e999",
        "(1,",
        "[1, 2]",
        "{'a': 1}",
        "None",
        "True",
        "9" * 5000,
        "(" * 300,
    ),
    *(
        "__import__('os').system('touch x')",
        "[" * 20000,
        "-" * 20000 + "1",
        "{1: 2}",
        "{'x': {'classes': ['a']}}",
        "0" * 99,
    ),
)
command_lines = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6)), max_size=7)
