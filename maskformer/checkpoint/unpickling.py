"""A pickle read as data: it makes containers, numbers and text, and a name in it means what our own table says.

Python's unpickler imports what a pickle names and hands it what the pickle holds, so that a name that is harmless can
still be given what is not. Here nothing is imported: ``pickletools`` decodes the operations and says what each takes
from the stack, and they are done one by one. Time and memory are bounded by the size of the file and ``MAX_OBJECTS``,
also for what walks over the result.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

MAX_OBJECTS = 500_000  # a checkpoint of the largest model, with its optimiser, has some 50,000
MAX_DEPTH = 100
_MAX_BITS = 2048  # of an integer; Python's writing of a number takes the square of its length

_OPERATIONS = {info.code.encode("latin1"): info for info in pickletools.opcodes}
# Operations that push the number or text that stands in them; what pushes "any" object refers to something.
_LITERALS = {
    info.name
    for info in pickletools.opcodes
    if info.arg is not None and info.stack_after and info.stack_after[0] is not pickletools.anyobject
}


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

    what = "a function, class or type"

    def build(self, state: Any) -> None:
        """Take the state that a pickle hands over; checked in ``finish``, for another may follow."""

    def finish(self) -> Any:
        """The value.

        Raises:
            ValueError: there is none; the message goes on after "it is".
        """
        raise ValueError(self.what)


class Refused(StandIn):
    """What is known, but is no data that is read: ``what`` goes on after "it is"."""

    def __init__(self, what: str):
        self.what = what


class Function(StandIn):
    """Stands for a function or class.

    Args:
        call: what is called in its place; looks at its arguments before it uses them.
    """

    def __init__(self, call: Callable[..., Any]):
        self.call = call


_MARK = StandIn()  # on the stack; one that gets into a container is refused there as any stand-in


def is_key(value: Any) -> bool:
    """Whether a value can be a key: of short integers not many have one hash, and nested tuples have a deep one."""
    return (
        value is None or type(value) in (str, float, bool, bytes) or (type(value) is int and -(2**63) <= value < 2**63)
    )


def update_set(target: Any, items: Any) -> set[Any]:
    """Add to a set what can be a key."""
    if type(target) is not set or type(items) not in (list, tuple, set):
        raise ValueError(f"it adds {_kind(items)} to {_kind(target)}")
    if not all(map(is_key, items)):
        raise ValueError("it holds a set of something other than numbers and text")
    target.update(items)
    return target


def call(function: Any, arguments: Any) -> Any:
    """What a function that a pickle named makes of what the pickle holds."""
    if isinstance(function, Refused):
        return function
    if not isinstance(function, Function) or type(arguments) is not tuple:
        raise ValueError(f"it calls {_kind(function)}")
    try:
        return function.call(*arguments)
    except TypeError as error:
        raise ValueError(f"it is damaged ({error})") from error


def _extend(target: Any, items: list[Any]) -> list[Any]:
    if type(target) is not list:
        raise ValueError(f"it appends to {_kind(target)}")
    target.extend(items)
    return target


def set_items(target: Any, items: list[Any]) -> dict[Any, Any]:
    """Set keys and values, which take turns; a key that can be none stands there to be refused."""
    if type(target) is not dict:
        raise ValueError(f"it sets items of {_kind(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[key if is_key(key) else Refused(f"a mapping with a key of type {type(key).__name__}")] = value
    return target


def _build(target: Any, state: Any) -> Any:
    if isinstance(target, StandIn):
        target.build(state)
    elif type(target) is not dict:  # of an OrderedDict, attributes, which nobody reads
        raise ValueError(f"it gives a state to {_kind(target)}")
    return target


def _kind(value: Any) -> str:
    return f"what is of type {type(value).__name__}"


# What operations do with their argument, if they have one, and what they take from the stack; above a mark, a list.
# What an action returns is pushed if the operation pushes something.
_ACTIONS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "POP", "POP_MARK"), lambda _: None),
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set, "EMPTY_TUPLE": tuple},
    **dict.fromkeys(("TUPLE1", "TUPLE2", "TUPLE3"), lambda *items: items),
    "TUPLE": tuple,
    "LIST": list,
    "DICT": lambda items: set_items({}, items),
    "FROZENSET": lambda items: update_set(set(), items),
    "APPEND": lambda target, item: _extend(target, [item]),
    "APPENDS": _extend,
    "SETITEM": lambda target, key, value: set_items(target, [key, value]),
    "SETITEMS": set_items,
    "ADDITEMS": update_set,
    "BUILD": _build,
    "REDUCE": call,
    "NEWOBJ": call,
    "OBJ": lambda items: call(items[0], tuple(items[1:])),
}


class Unpickler:
    """Reads one pickle, which may be followed by others in the file.

    Args:
        file: stands at the pickle's beginning, and then behind its end; its ``read`` takes no more memory than the file
            has bytes, whatever it is asked for.
        find_name: what stands for "module.name", None for what is foreign; a ``Function`` can be called.
        find_stored: what stands for something outside of the pickle, by the pickle's description of it.
        steps: as many as operations are done at most, here and in all that shares them.
    """

    def __init__(
        self, file: BinaryIO, find_name: Callable[[str], Any], find_stored: Callable[[Any], Any], steps: Iterator[int]
    ):
        self._file = file
        self._find_name = find_name
        self._steps = steps
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._actions: dict[str, Callable[..., Any]] = {
            **_ACTIONS,
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self._memo.__getitem__),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._put),
            "MEMOIZE": self._memoize,
            "DUP": self._duplicate,
            "BINPERSID": find_stored,
            "GLOBAL": lambda name: self._find(*name.split(" ", 1)),
            "STACK_GLOBAL": self._find,
            "INST": lambda name, arguments: call(self._find(*name.split(" ", 1)), tuple(arguments)),
        }

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
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise ValueError(f"byte {code!r} is no operation of a pickle")
            if operation.name == "STOP":
                return self._stack.pop()
            self._do(operation.name, self._read_argument(operation), operation.stack_before, operation.stack_after)
        raise ValueError(f"it holds more than {MAX_OBJECTS} objects")

    def _read_argument(self, operation: pickletools.OpcodeInfo) -> list[Any]:
        if operation.name == "STRING":  # of Python 2, which wrote any byte; pickletools reads ASCII alone
            return [self._file.readline().strip()[1:-1].decode("unicode_escape")]
        return [] if operation.arg is None else [operation.arg.reader(self._file)]

    def _do(self, name: str, argument: list[Any], before: list[Any], after: list[Any]) -> None:
        if name in _LITERALS:
            self._stack += argument
        elif name in self._actions:
            result = self._actions[name](*argument, *(self._take(before) if before else ()))
            if after:
                self._stack.append(result)
        else:
            raise ValueError(f"it has the operation {name}, which weights do not need")

    def _take(self, before: list[Any]) -> list[Any]:
        """What an operation takes from the stack: values, and what lies above a mark as one list."""
        above = []
        if pickletools.markobject in before:
            before = before[: before.index(pickletools.markobject)]
            above = [list(iter(self._stack.pop, _MARK))[::-1]]
        return [*[self._stack.pop() for _ in before][::-1], *above]

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, top: Any) -> Any:
        self._memo[len(self._memo)] = top
        return top

    def _duplicate(self, top: Any) -> Any:
        self._stack.append(top)
        return top

    def _find(self, module: Any, name: Any) -> Any:
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("it names something by what is no text")
        full_name = f"{'builtins' if module == '__builtin__' else module}.{name}"  # in Python 2, the former
        found = self._find_name(full_name)
        if found is None:
            raise ForeignNameError(full_name)
        return found


def finish(root: Any) -> Any:
    """Put values into the place of stand-ins in what an ``Unpickler`` read.

    What a pickle holds once may stand in many places, and in those more: the limits count every place.

    Args:
        root: what was read; its containers are changed.

    Returns:
        The same as plain values.

    Raises:
        EntryError: an entry is no data.
        ValueError: a limit is passed.
    """
    done: dict[StandIn, Any] = {}  # a tensor that two names share is still one
    steps = iter(range(MAX_OBJECTS))

    def visit(value: Any, place: tuple[Any, ...]) -> Any:
        if len(place) > MAX_DEPTH or next(steps, None) is None:
            raise ValueError(f"{_name(place[:3])} holds more than {MAX_OBJECTS} objects or {MAX_DEPTH} levels")
        if type(value) is tuple:
            return tuple(visit(part, (*place, index)) for index, part in enumerate(value))
        if type(value) in (list, dict):
            for key, part in value.items() if type(value) is dict else enumerate(value):
                if isinstance(key, Refused):
                    raise EntryError(f"{_name(place)} is {key.what}")
                value[key] = visit(part, (*place, key))
            return value
        try:
            if type(value) is int and value.bit_length() > _MAX_BITS:
                raise ValueError(f"a number of {value.bit_length()} bits")
            if isinstance(value, StandIn) and value not in done:
                done[value] = value.finish()
        except (ValueError, RuntimeError, OverflowError) as error:  # the latter two: of a shape that no tensor has
            raise EntryError(f"{_name(place)} is {error}") from error
        return done[value] if isinstance(value, StandIn) else value

    return visit(root, ())


def _name(place: tuple[Any, ...]) -> str:
    """``['model']['stem.weight']``, as Python would reach it."""
    shown = "".join(f"[{text if len(text) < 200 else f'{text[:200]}...'}]" for text in map(repr, place))
    return f"its entry {shown}" if place else "what it holds"
