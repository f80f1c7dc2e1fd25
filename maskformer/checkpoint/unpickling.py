"""A pickle read as data: it makes containers, numbers and text, and a name in it means what our own table says.

Python's unpickler imports what a pickle names and hands it what the pickle holds, so that a name that is harmless can
still be given what is not. Here nothing is imported: operations are decoded by ``pickletools`` and done one by one.
Time and memory are bounded by the size of the file and ``MAX_OBJECTS``, also for what walks over the result.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

MAX_OBJECTS = 500_000  # a checkpoint of the largest model, with its optimiser, has some 50,000
MAX_DEPTH = 100
_MAX_BITS = 2048  # of an integer; Python's writing of a number takes the square of its length

_OPERATIONS = {ord(info.code): info for info in pickletools.opcodes}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_NUMBERS_AND_TEXT = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class File(Protocol):
    """What a pickle is read from; ``read`` takes no more memory than the file has bytes, whatever it is asked for."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer at the end."""

    def readline(self) -> bytes:
        """The next bytes up to a line's end."""


class ForeignNameError(ValueError):
    """A pickle names what is not in the table.

    Args:
        name: module and name within it.
    """

    def __init__(self, name: str):
        super().__init__(f"it holds {name}")
        self.name = name


class EntryError(ValueError):
    """An entry of a file is no data that is read; the message names it."""


class StandIn:
    """What a pickle makes of a name, until everything is read and ``finish`` turns it into a value, once."""

    def build(self, state: Any) -> None:
        """Take the state that a pickle hands over; checked in ``finish``, for another may follow."""

    def finish(self) -> Any:
        """The value.

        Raises:
            ValueError: there is none; the message goes on after "it is".
        """
        raise NotImplementedError


class Refused(StandIn):
    """What is known, but is no data that is read.

    Args:
        what: goes on after "it is".
    """

    def __init__(self, what: str):
        self.what = what

    def finish(self) -> Any:
        """Refuse, now that the entry is known."""
        raise ValueError(self.what)


class Function(StandIn):
    """Stands for a function or class.

    Args:
        call: what is called in its place; looks at its arguments before it uses them.
    """

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def finish(self) -> Any:
        """Refuse: a function is no data."""
        raise ValueError("a function or class")


def is_key(value: Any) -> bool:
    """Whether a value can be a key: of short integers not many have one hash, and nested tuples have a deep one."""
    return (
        value is None or type(value) in (str, float, bool, bytes) or (type(value) is int and -(2**63) <= value < 2**63)
    )


class Unpickler:
    """Reads one pickle, which may be followed by others in the file.

    Args:
        file: stands at the pickle's beginning, and then behind its end.
        names: what stands for "module.name"; a ``Function`` can be called.
        find_stored: what stands for something outside of the pickle, by the pickle's description of it.
        steps: as many as operations are done at most, here and in all that shares them.
    """

    def __init__(self, file: File, names: Mapping[str, Any], find_stored: Callable[[Any], Any], steps: Iterator[int]):
        self._file = file
        self._names = names
        self._find_stored = find_stored
        self._steps = steps
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """What the pickle holds, with stand-ins in it: see ``finish``.

        Raises:
            ForeignNameError: it names something that is not in the table.
            ValueError, LookupError, EOFError: it is damaged, or no pickle.
        """
        for _ in self._steps:
            code = self._file.read(1)
            if not code:
                raise EOFError("it ends too early")
            operation = _OPERATIONS.get(code[0])
            if operation is None:
                raise ValueError(f"byte {code!r} is no operation of a pickle")
            if operation.name == "STOP":
                return self._stack.pop()
            self._do(operation)
        raise ValueError(f"it holds more than {MAX_OBJECTS} objects")

    def _do(self, operation: pickletools.OpcodeInfo) -> None:
        name = operation.name
        if name == "STRING":  # of Python 2, which wrote any byte; pickletools reads ASCII alone
            self._stack.append(self._file.readline().strip()[1:-1].decode("unicode_escape"))
            return
        argument: Any = operation.arg.reader(self._file) if operation.arg else None  # type: ignore[arg-type]
        if name in _NUMBERS_AND_TEXT:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if name == "MEMOIZE" else argument] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name in ("PROTO", "FRAME"):
            pass
        elif (do := getattr(self, f"_do_{name.lower()}", None)) is not None:
            do() if argument is None else do(argument)
        else:
            raise ValueError(f"it has the operation {name}, which weights do not need")

    def _pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _do_pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()

    def _do_pop_mark(self) -> None:
        self._pop_mark()

    def _do_dup(self) -> None:
        self._stack.append(self._stack[-1])

    def _do_tuple(self) -> None:
        self._stack.append(tuple(self._pop_mark()))

    def _do_tuple1(self) -> None:
        self._stack[-1:] = [(self._stack[-1],)]

    def _do_tuple2(self) -> None:
        self._stack[-2:] = [(self._stack[-2], self._stack[-1])]

    def _do_tuple3(self) -> None:
        self._stack[-3:] = [(self._stack[-3], self._stack[-2], self._stack[-1])]

    def _do_list(self) -> None:
        self._stack.append(self._pop_mark())

    def _do_dict(self) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(items)

    def _do_frozenset(self) -> None:
        self._stack.append(make_set(self._pop_mark()))

    def _do_append(self) -> None:
        self._extend([self._stack.pop()])

    def _do_appends(self) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError(f"it appends to {_kind(target)}")
        target.extend(items)

    def _do_additems(self) -> None:
        items, target = self._pop_mark(), self._stack[-1]
        if type(target) is not set:
            raise ValueError(f"it adds to {_kind(target)}")
        if not all(map(is_key, items)):
            raise ValueError("it holds a set of something other than numbers and text")
        target.update(items)

    def _do_setitem(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _do_setitems(self) -> None:
        self._set_items(self._pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise ValueError(f"it sets items of {_kind(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[key if is_key(key) else Refused(f"a mapping with a key of type {type(key).__name__}")] = value

    def _do_global(self, name: str) -> None:
        self._push_name(*name.split(" ", 1))

    def _do_stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("it names something by what is no text")
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"  # in Python 2, the former
        if full_name not in self._names:
            raise ForeignNameError(full_name)
        self._stack.append(self._names[full_name])

    def _do_inst(self, name: str) -> None:
        arguments = tuple(self._pop_mark())
        self._do_global(name)
        self._call(arguments)

    def _do_obj(self) -> None:
        function, *arguments = self._pop_mark()
        self._stack.append(function)
        self._call(tuple(arguments))

    def _do_reduce(self) -> None:
        self._call(self._stack.pop())

    _do_newobj = _do_reduce

    def _call(self, arguments: Any) -> None:
        function = self._stack.pop()
        if isinstance(function, Refused):
            self._stack.append(function)
        elif isinstance(function, Function) and type(arguments) is tuple:
            try:
                self._stack.append(function.call(*arguments))
            except TypeError as error:
                raise ValueError(f"it is damaged ({error})") from error
        else:
            raise ValueError(f"it calls {_kind(function)}")

    def _do_build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, StandIn):
            target.build(state)
        elif type(target) is not dict:  # of an OrderedDict, attributes, which nobody reads
            raise ValueError(f"it gives a state to {_kind(target)}")

    def _do_binpersid(self) -> None:
        self._stack.append(self._find_stored(self._stack.pop()))


def make_set(items: Any) -> set[Any] | Refused:
    """A set of what can be a key."""
    if type(items) not in (list, tuple, set):
        raise ValueError(f"it makes a set of {_kind(items)}")
    return set(items) if all(map(is_key, items)) else Refused("a set of something other than numbers and text")


def _kind(value: Any) -> str:
    return f"what is of type {type(value).__name__}"


class Finisher:
    """Turns what an ``Unpickler`` read into plain values.

    What a pickle holds once may stand in many places, and in those more: the limits count every place.
    """

    def __init__(self) -> None:
        self._done: dict[int, tuple[Any, int, int]] = {}  # by id: the value, how many it holds, how deep it is

    def finish(self, value: Any) -> Any:
        """The same with a value for each stand-in.

        Args:
            value: alive until the end, as all that it holds.

        Raises:
            EntryError: an entry is no data.
            ValueError: a limit is passed.
        """
        return self._finish(value, ())[0]

    def _finish(self, value: Any, place: tuple[Any, ...]) -> tuple[Any, int, int]:
        if id(value) in self._done:
            return self._done[id(value)]
        if len(place) > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if type(value) is dict:
            for key in value:
                if isinstance(key, Refused):
                    raise EntryError(f"{_name(place)} is {key.what}")
            parts = [self._finish(part, (*place, key)) for key, part in value.items()]
            result: Any = dict(zip(value, (part for part, _, _ in parts)))
        elif type(value) in (list, tuple):
            parts = [self._finish(part, (*place, index)) for index, part in enumerate(value)]
            result = type(value)(part for part, _, _ in parts)
        else:
            return self._finish_leaf(value, place)
        count = 1 + sum(count for _, count, _ in parts)
        depth = 1 + max((depth for _, _, depth in parts), default=0)
        if count > MAX_OBJECTS or depth > MAX_DEPTH:
            raise ValueError(f"{_name(place)} holds more than {MAX_OBJECTS} objects or {MAX_DEPTH} levels")
        self._done[id(value)] = result, count, depth
        return self._done[id(value)]

    def _finish_leaf(self, value: Any, place: tuple[Any, ...]) -> tuple[Any, int, int]:
        try:
            if type(value) is int and value.bit_length() > _MAX_BITS:
                raise ValueError(f"a number of {value.bit_length()} bits")
            result = value.finish() if isinstance(value, StandIn) else value
        except (ValueError, RuntimeError, OverflowError) as error:  # the latter two: of a shape that no tensor has
            raise EntryError(f"{_name(place)} is {error}") from error
        if isinstance(value, StandIn):  # a tensor that two names share is still one
            self._done[id(value)] = result, 1, 0
        return result, 1, 0


def _name(place: tuple[Any, ...]) -> str:
    """``['model']['stem.weight']``, as Python would reach it."""
    shown = "".join(f"[{text if len(text) < 200 else f'{text[:200]}...'}]" for text in map(repr, place))
    return f"its entry {shown}" if place else "what it holds"
