"""A computation written down as it is done once, to be done again without asking Python what to do.

Noted are torch's operations that compute and every compiled kernel that Python calls, each with the very memory that
it read and wrote. What a replay reads must therefore lie where it lay, and nothing may hang on values that Python has
looked at. What follows from fixed tensors alone is not computed again.
"""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from models.kernels.noting import noting

aten: Any = torch.ops.aten
EMPTY = (aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided)
COPIES = (aten.to, aten._to_copy, aten.type_as, aten.clone, aten.contiguous, aten.reshape, aten.flatten)
ALIGNMENT = 64  # bytes at whose multiples packed tensors begin
Call = Callable[[], Any]


class UnrecordableError(Exception):
    """Something in a computation cannot be done again in this way; the message says what."""


class Tape:
    """What was noted. result: what the computation returned, overwritten by each run. num_bytes: that it holds."""

    def __init__(self, calls: Sequence[Call], result: Tensor, num_bytes: int) -> None:
        self._calls = tuple(calls)
        self.result, self.num_bytes = result, num_bytes

    def __len__(self) -> int:
        return len(self._calls)

    def run(self) -> Tensor:
        for call in self._calls:
            call()
        return self.result


def record(compute: Callable[[], Tensor], fixed: Iterable[Tensor]) -> Tape:
    """Compute once, and note how.

    Args:
        fixed: what will never change, as weights.
    Raises:
        UnrecordableError
    """
    recorder = _Recorder(fixed)
    with recorder, _noted_by(recorder):
        result = compute()
    return _packed(recorder, result)


@contextlib.contextmanager
def _noted_by(recorder: "_Recorder") -> Iterator[None]:
    noting.notes = recorder
    try:
        yield
    finally:
        noting.notes = None


class _Recorder(TorchDispatchMode):
    """calls: what was done. made: the tensors that were made on the way and will change, by where their bytes begin."""

    def __init__(self, fixed: Iterable[Tensor]) -> None:
        super().__init__()
        self.calls: list[partial[Any]] = []
        self.made: dict[int, Tensor] = {}
        self._fixed = {_begin(tensor) for tensor in fixed if tensor.numel()}
        self._kept: list[Tensor] = []  # no address may be given twice

    def note(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if arguments or not any(noted.func is call for noted in self.calls):  # how many threads there are: once
            self.calls.append(partial(call, *arguments))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs, outputs = list(_tensors((args, kwargs))), list(_tensors(result))
        self._kept += outputs
        changing = [tensor for tensor in inputs if _begin(tensor) not in self._fixed]
        if func._schema.is_mutable:
            if func.overloadpacket is not aten.detach_:
                self.calls.append(partial(func, *args, **kwargs))
        elif not outputs:
            if changing:
                raise UnrecordableError(f"{func} reads a number on the host")
        elif not {_begin(tensor) for tensor in outputs} & {_begin(tensor) for tensor in inputs}:
            self._made(func, args, kwargs, result, is_fixed=bool(inputs) and not changing)
        return result

    def _made(self, func: Any, args: Any, kwargs: Any, result: Any, *, is_fixed: bool) -> None:
        """Of an operation whose outputs are new tensors."""
        outputs = list(_tensors(result))
        is_empty = func.overloadpacket in EMPTY
        if is_fixed and not is_empty:
            self._fixed |= {_begin(tensor) for tensor in outputs}
            return
        self.made |= {_begin(tensor): tensor for tensor in outputs}
        if not is_empty:
            self.calls.append(_again(func, args, kwargs, outputs))


def _again(func: Any, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> partial[Any]:
    """An operation, its results to be written where they were put first."""
    if func.overloadpacket in COPIES:
        (output,), source = outputs, args[0]
        # Not of the tensor's own method, so that it is found among the arguments.
        return partial(Tensor.copy_, output if output.shape == source.shape else output.view(source.shape), source)
    if func.overloadpacket is aten.embedding:  # whose own way to write is to compute and to copy
        weight, numbers = args[:2]
        return partial(torch.index_select, weight, 0, numbers.view(-1), out=outputs[0].view(-1, weight.shape[-1]))
    into = _writing(func)
    if into is not None and len(outputs) == 1:
        return _fastest(func, partial(into, *args, **kwargs, out=outputs[0]))
    return partial(_copy_results, list(outputs), func, args, kwargs)


def _fastest(func: Any, call: partial[Any]) -> partial[Any]:
    """By the function of torch's of that name where it takes the same arguments: that is called in a quarter of the
    time. What it computes was computed already, and is proved like all else.
    """
    function = getattr(torch, func.overloadpacket.__name__, None)
    if not isinstance(function, BuiltinFunctionType):
        return call
    try:
        function(*call.args, **call.keywords)
    except (TypeError, RuntimeError):
        return call
    return partial(function, *call.args, **call.keywords)


def _writing(func: Any) -> Any:
    """The overload of an operation that writes its one result where it is told, None where there is none."""
    wanted = [(argument.name, str(argument.type)) for argument in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        overload = getattr(func.overloadpacket, name)
        arguments = overload._schema.arguments
        if [(argument.name, str(argument.type)) for argument in arguments if not argument.is_out] == wanted and [
            argument.name for argument in arguments if argument.is_out
        ] == ["out"]:
            return overload
    return None


def _copy_results(outputs: Sequence[Tensor], func: Any, args: Any, kwargs: Any) -> None:
    for output, result in zip(outputs, _tensors(func(*args, **kwargs)), strict=True):
        output.copy_(result)


def _packed(recorder: _Recorder, result: Tensor) -> Tape:
    """The tape over memory of its own, in which what is needed no more makes room for what comes."""
    places, num_bytes = _places(recorder, result)
    memory = torch.empty(num_bytes + ALIGNMENT, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % ALIGNMENT :][:num_bytes]
    moved = _Moved(memory, recorder.made, places)
    calls = [partial(call.func, *moved.of(call.args), **moved.of(call.keywords)) for call in recorder.calls]
    return Tape(calls, moved.of(result), num_bytes)


def _places(recorder: _Recorder, result: Tensor) -> tuple[dict[int, int], int]:
    """Where in the packed memory each tensor goes that was made, by where its bytes begin; how many bytes in all."""
    begins = sorted(recorder.made)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, used in enumerate([*((call.args, call.keywords) for call in recorder.calls), result]):
        for begin in _used(used, begins, recorder.made):
            first.setdefault(begin, number)
            last[begin] = number
    places: dict[int, int] = {}
    num_bytes = 0
    there: list[int] = []
    for begin in sorted(first, key=lambda begin: first[begin]):
        there = [other for other in there if last[other] >= first[begin]]
        places[begin] = place = _free_place(_size(recorder.made[begin]), recorder.made, {b: places[b] for b in there})
        there.append(begin)
        num_bytes = max(num_bytes, place + _size(recorder.made[begin]))
    return places, num_bytes


def _free_place(size: int, made: dict[int, Tensor], places: dict[int, int]) -> int:
    """The first place for so many bytes between those that are taken."""
    place = 0
    for start, begin in sorted((start, begin) for begin, start in places.items()):
        if place + size <= start:
            break
        place = max(place, start + _size(made[begin]))
    return place


class _Moved:
    """Finds for what lay in tensors that were made the same in packed memory, and leaves all else as it is."""

    def __init__(self, memory: Tensor, made: dict[int, Tensor], places: dict[int, int]) -> None:
        self._memory, self._bytes = memory, memory.numpy()
        self._made, self._places, self._begins = made, places, sorted(made)

    def of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            place = self._place(value.data_ptr() if value.numel() else 0)
            return value if place is None else self._view(value, place)
        if isinstance(value, np.ndarray):
            place = self._place(value.ctypes.data if value.size else 0)
            if place is None:
                return value
            return np.ndarray(value.shape, value.dtype, self._bytes, place, value.strides)
        if isinstance(value, tuple | list):
            return type(value)(self.of(each) for each in value)
        return {name: self.of(each) for name, each in value.items()} if isinstance(value, dict) else value

    def _place(self, address: int) -> int | None:
        begin = _holder(address, self._begins, self._made)
        return None if begin is None else self._places[begin] + address - begin

    def _view(self, tensor: Tensor, place: int) -> Tensor:
        numbers = self._memory[place:]
        numbers = numbers[: len(numbers) // tensor.itemsize * tensor.itemsize].view(tensor.dtype)
        return numbers.as_strided(tensor.shape, tensor.stride())


def _holder(address: int, begins: Sequence[int], made: dict[int, Tensor]) -> int | None:
    """Where the tensor begins, of those that were made, in whose bytes an address lies."""
    number = bisect_right(begins, address) - 1
    if number < 0 or address >= begins[number] + made[begins[number]].untyped_storage().nbytes():
        return None
    return begins[number]


def _used(value: Any, begins: Sequence[int], made: dict[int, Tensor]) -> Iterator[int]:
    """Those of the tensors that were made in which something of a call's arguments lies."""
    if isinstance(value, Tensor | np.ndarray):
        address = value.data_ptr() if isinstance(value, Tensor) else value.ctypes.data
        begin = _holder(address, begins, made)
        if begin is not None:
            yield begin
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _used(each, begins, made)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _tensors(each)


def _begin(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _size(tensor: Tensor) -> int:
    """Bytes of all memory that a tensor's lies in, to the next multiple of ALIGNMENT."""
    return -(-tensor.untyped_storage().nbytes() // ALIGNMENT) * ALIGNMENT
