"""Weight files unpickle to what was pickled, and hostile ones do nothing at all."""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import pathlib
import pickle
import pickletools
import struct
import sys
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskx_tf.errors import UserError
from maskx_tf.weights import pickles

DTYPES = [np.dtype(code) for code in "?bhilBHILefdg"]
DTYPES += [
    np.dtype(order + code) for order in "<>" for code in ("i2", "u4", "i8", "f2", "f4", "f8")
]
PROPERTY = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes what Python 2 writes: bytes as its str, str as its unicode, arrays by name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_python2_str(self, data):
        if self.proto == 0:
            self.write(b"S" + repr(data)[1:].encode() + b"\n")
        elif len(data) < 256:
            self.write(b"U" + bytes([len(data)]) + data)
        else:
            self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(data)

    dispatch[bytes] = save_python2_str

    def reducer_override(self, obj):
        if isinstance(obj, np.ndarray):
            fortran = obj.flags.f_contiguous and not obj.flags.c_contiguous
            data = obj.tobytes("F" if fortran else "C")
            arguments = (np.ndarray, (0,), b"b")
            return np.empty(0).__reduce__()[0], arguments, (1, obj.shape, obj.dtype, fortran, data)
        if isinstance(obj, np.generic):
            return np.float32(0).__reduce__()[0], (obj.dtype, obj.tobytes())
        if isinstance(obj, np.dtype):
            order = obj.str[:1].encode()
            state = (3, order, None, None, None, -1, -1, 0)
            return np.dtype, (obj.str[1:].encode(), 0, 1), state
        if isinstance(obj, OrderedDict):
            return OrderedDict, ([list(item) for item in obj.items()],)
        return NotImplemented

    def save_global(self, obj, name=None):
        name = name or obj.__name__
        module = {"set": "__builtin__", "frozenset": "__builtin__", "OrderedDict": "collections"}
        core = "numpy" if name in ("ndarray", "dtype") else "numpy.core.multiarray"
        self.write(f"c{module.get(name, core)}\n{name}\n".encode())
        self.memoize(obj)

    dispatch[type] = save_global
    dispatch[type(np.empty(0).__reduce__()[0])] = save_global


def python2_dumps(value, protocol: int) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol, fix_imports=False).dump(value)
    return file.getvalue()


def dumps(value, protocol: int, python2: bool = False) -> bytes:
    return python2_dumps(value, protocol) if python2 else pickle.dumps(value, protocol)


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "weights.pkl"

    def load_bytes(data: bytes):
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return pickles.load(str(path))

    return load_bytes


@pytest.fixture
def refused(load, tmp_path):
    """The message with which bytes are refused, after checks that hold for every message."""

    def message(data: bytes) -> str:
        with pytest.raises(UserError) as raised:
            load(data)
        text = str(raised.value)
        assert text.startswith(str(tmp_path / "weights.pkl"))
        assert text.isascii() and text.isprintable() and len(text) < 400
        return text

    return message


def assert_same(got, wanted) -> None:
    """Equal values of equal types, arrays bit by bit."""
    assert type(got) is type(wanted)
    if isinstance(wanted, np.ndarray | np.generic):
        assert (got.dtype.str, got.shape) == (wanted.dtype.str, wanted.shape)
        assert got.tobytes() == wanted.tobytes()
    elif isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float) and math.isnan(wanted):
        assert math.isnan(got)
    else:
        assert got == wanted


def latin1(value):
    """What data of Python 2 become, whose str is bytes here."""
    if isinstance(value, bytes):
        return value.decode("latin1")
    if isinstance(value, dict):
        return type(value)((latin1(key), latin1(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return type(value)(map(latin1, value))
    return value


@st.composite
def arrays(draw) -> np.ndarray:
    """Arrays of every numeric dtype and random bits: 0-d, empty, transposed, strided, read-only."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=4))
    seed = draw(st.integers(0, 2**32))
    data = np.random.default_rng(seed).bytes(math.prod(shape) * dtype.itemsize)
    array = np.frombuffer(data, "u1")
    array = (array & 1 if dtype.kind == "b" else array).view(dtype).reshape(shape)
    axes = draw(st.permutations(range(len(shape))))
    array = array.transpose(axes)
    if draw(st.booleans()):
        array = array[::-1] if array.ndim else array
    elif draw(st.booleans()):
        array = array.copy(order=draw(st.sampled_from("CFK")))
    return array


KEYS = st.one_of(
    st.text(max_size=5),
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.booleans(),
    st.none(),
    st.binary(max_size=5),
    st.floats(allow_nan=False),
)
LEAVES = st.one_of(
    KEYS,
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(max_size=300),
    arrays(),
    arrays().filter(lambda array: array.size > 0).map(lambda array: array.ravel()[0]),
    st.sets(KEYS, max_size=3),
    st.frozensets(KEYS, max_size=3),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4).map(OrderedDict),
    ),
    max_leaves=12,
)


@PROPERTY
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.integers(0, 5), st.booleans())
def test_python3_data_round_trip(load, value, protocol, fix_imports):
    assert_same(load(pickle.dumps(value, protocol, fix_imports=fix_imports)), value)


@PROPERTY
@given(st.dictionaries(KEYS, VALUES, max_size=4), st.integers(0, 2))
def test_python2_data_round_trip_with_str_for_bytes(load, value, protocol):
    assert_same(load(python2_dumps(value, protocol)), latin1(value))


def weights() -> dict:
    """A small file of the usual shape; bytes are str in Python 2."""
    kernel = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    blobs = {b"conv1_w": kernel, "fc_b": kernel[0].astype(">f8"), b"step": np.float32(3)}
    return {b"blobs": blobs, b"cfg": b"MODEL:\n  TYPE: 'r\\cnn'\n" + bytes(range(256))}


def test_python2_pickles_are_what_they_should_be():
    names = {
        protocol: {op.name for op, _, _ in pickletools.genops(python2_dumps({b"a": 1}, protocol))}
        for protocol in (0, 1, 2)
    }
    assert "STRING" in names[0] and "SHORT_BINSTRING" in names[1] & names[2]
    assert b"T" + struct.pack("<i", 300) in python2_dumps(bytes(300), 2)
    for protocol in names:  # the standard unpickler reads them alike
        stream = python2_dumps({b"a": [np.float32(2), OrderedDict(b=b"c")]}, protocol)
        assert pickle.loads(stream, encoding="latin1") == {"a": [2, OrderedDict(b="c")]}
        array = np.asfortranarray(np.arange(600, dtype="f8").reshape(2, 300))
        stream = python2_dumps(array, protocol)
        np.testing.assert_array_equal(pickle.loads(stream, encoding="latin1"), array)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_python2_text_becomes_str_and_arrays_keep_their_bits(load, protocol):
    wanted = weights()
    got = load(python2_dumps(wanted, protocol))
    assert list(got) == ["blobs", "cfg"]
    assert list(got["blobs"]) == ["conv1_w", "fc_b", "step"]
    assert got["cfg"] == wanted[b"cfg"].decode("latin1")
    assert_same(got["blobs"]["conv1_w"], wanted[b"blobs"][b"conv1_w"])
    assert_same(got["blobs"]["fc_b"], wanted[b"blobs"]["fc_b"])
    assert_same(got["blobs"]["step"], np.float32(3))


@pytest.mark.parametrize("protocol", range(6))
def test_layouts_of_arrays(load, protocol):
    array = np.arange(24.0).reshape(2, 3, 4)
    for wanted in (array, array.T, array.transpose(0, 2, 1), array.transpose(1, 0, 2)[:, ::2]):
        assert_same(load(pickle.dumps({"a": wanted}, protocol))["a"], wanted)


def test_arrays_are_read_only(load):
    for protocol in range(6):
        array = load(pickle.dumps({"a": np.zeros(3)}, protocol))["a"]
        assert not array.flags.writeable and not array.flags.owndata


@pytest.mark.parametrize(("python2", "protocol"), [(True, 0), (True, 2), (False, 3), (False, 5)])
def test_every_truncation_is_refused(refused, python2, protocol):
    stream = dumps({"blobs": {b"a": np.arange(3.0)}, "b": [1, 2.5, b"c"]}, protocol, python2)
    for length in range(len(stream)):
        message = refused(stream[:length])
        assert "is cut off; download it again" in message or "is empty" in message


@pytest.mark.parametrize(("python2", "protocol"), [(True, 0), (True, 2), (False, 2), (False, 5)])
def test_mutated_files_load_or_are_refused(load, python2, protocol):
    random = np.random.default_rng(protocol)
    stream = dumps(weights() | {"more": [(1, {2: 3}), {4}, "é", None, True]}, protocol, python2)
    outcomes = {"loaded": 0, "refused": 0}
    for _ in range(1500):
        data = bytearray(stream)
        for _ in range(random.integers(1, 4)):
            place = random.integers(len(data))
            piece = random.bytes(random.integers(0, 3)) if random.random() < 0.7 else b"\x94.R"
            data[place : place + random.integers(0, 3)] = piece
        try:
            assert isinstance(load(bytes(data)), dict)
            outcomes["loaded"] += 1
        except UserError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


@PROPERTY
@given(st.lists(st.sampled_from([op.code.encode("latin1") for op in pickletools.opcodes])))
def test_random_opcodes_load_or_are_refused(load, opcodes):
    with contextlib.suppress(UserError):
        load(b"\x80\x02}" + b"".join(opcodes) + b"\x00\n" * 4 + b"0" * 8 + b"}.")


# Code that a file asks to run.

HOSTILE = """
os system; posix system; nt system; subprocess Popen; subprocess check_call; builtins eval;
builtins exec; builtins getattr; builtins __import__; builtins open; __builtin__ eval;
__builtin__ apply; __builtin__ execfile; operator attrgetter; operator methodcaller;
functools partial; importlib import_module; numpy load; numpy fromfile; numpy memmap;
numpy.core.multiarray frombuffer; numpy.core.multiarray fromfile; numpy.f2py.crackfortran myeval;
numpy.testing._private.utils runstring; numpy.core.numeric load; numpy._core.multiarray array;
copyreg _reconstructor; copy_reg _reconstructor; copyreg __newobj__; codecs decode; codecs open;
_codecs decode; _codecs lookup; builtins bytearray; builtins type; pickle loads; shutil rmtree;
collections defaultdict; collections OrderedDict.__init__.__globals__; numpy ndarray.tofile;
collections OrderedDict.fromkeys; numpy dtype.__class__; pty spawn; runpy run_path; timeit timeit;
torch._utils _rebuild_tensor_v2; maskx_tf.weights.pickles load; numpy  ndarray
"""
NAMES = [entry.strip().split(" ", 1) for entry in HOSTILE.replace("\n", " ").split(";")]
WATCHED = ("os.", "subprocess.", "exec", "compile", "import", "pickle.", "shutil.", "ctypes.")
_events: list[str] | None = None


def _watch(event, arguments):
    if _events is not None and event.startswith(WATCHED):
        _events.append(event)


sys.addaudithook(_watch)  # cannot be removed; it sees what happens while _events is a list


def _text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def disguises(module: str, name: str, command: str) -> dict[str, bytes]:
    """Ways to have `module.name(command)` run by an unpickler, each inside a weight dict."""
    line = f"{module}\n{name}\n".encode()
    stacked = _text(module) + _text(name) + b"\x93"
    argument = _text(command)
    short = (
        b"U" + bytes([len(module)]) + module.encode() + b"U" + bytes([len(name)]) + name.encode()
    )
    calls = {
        "GLOBAL": b"c" + line + argument + b"\x85R",
        "STACK_GLOBAL": stacked + argument + b"\x85R",
        "STACK_GLOBAL of str": short + b"\x93" + argument + b"\x85R",
        "INST": b"(" + argument + b"i" + line,
        "OBJ": b"(c" + line + argument + b"o",
        "NEWOBJ": stacked + argument + b"\x85\x81",
        "NEWOBJ_EX": stacked + argument + b"\x85}\x92",
        "BUILD": b"c" + line + b"}" + _text("__setstate__") + b"c" + line + b"sb",
        "name only": b"c" + line,
        "dropped": b"c" + line + argument + b"\x85R0N",
        "as an array's class": b"cnumpy.core.multiarray\n_reconstruct\nc"
        + line
        + b"K\x00\x85U\x01b\x87R",
    }
    return {form: b"\x80\x04}" + _text("a") + call + b"s." for form, call in calls.items()}


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_files_that_would_run_code_are_refused_and_run_nothing(refused, tmp_path, module, name):
    global _events
    sentinel = tmp_path / "sentinel"
    refused(b"\x80\x02]N.")  # whatever is imported on first use is imported now
    for form, stream in disguises(module, name, f"touch {sentinel}").items():
        _events = []
        try:
            message = refused(stream)
            assert not _events, (form, _events)
        finally:
            _events = None
        assert f"calls for `{module}.{name.replace(' ', '.')}`" in message, form
        assert "would run code" in message
    assert not sentinel.exists()


def test_the_hostile_files_do_run_in_the_standard_unpickler(tmp_path):
    for index, form in enumerate(["GLOBAL", "STACK_GLOBAL", "INST", "dropped"]):
        sentinel = tmp_path / f"sentinel{index}"
        pickle.loads(disguises("os", "system", f"touch {sentinel}")[form])
        assert sentinel.exists()


def test_names_are_printed_harmlessly(refused):
    for name in ["\x1b[2J" * 50, "a\rb", "é" * 1000]:
        assert "calls for `" in refused(b"\x80\x04" + _text("os") + _text(name) + b"\x93.")


NDARRAY = b"cnumpy\nndarray\n"
DTYPE = b"cnumpy\ndtype\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
FROM_BUFFER = b"cnumpy._core.numeric\n_frombuffer\n"
EMPTY = RECONSTRUCT + NDARRAY + b"K\x00\x85U\x01b\x87R"
FLOAT32 = DTYPE + b"U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
LARGE = b"\x8a\x06\xff\xff\xff\xff\xff\x7f"  # 2**47 - 1
ORDERED = b"ccollections\nOrderedDict\n"
ENCODE = b"c_codecs\nencode\n"


def state(shape: bytes, data: bytes, dtype: bytes = FLOAT32) -> bytes:
    """An array of version 1, C order."""
    return EMPTY + b"(K\x01" + shape + dtype + b"\x89" + data + b"tb"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (NDARRAY, "holds the global numpy.ndarray"),
        (NDARRAY + b"K\x03\x85R", "calls numpy.ndarray"),
        (NDARRAY + b"}b", "sets the state of a|holds the global"),
        (RECONSTRUCT + b"}" + b"b", "holds the global"),
        (RECONSTRUCT + DTYPE + b"K\x00\x85U\x01b\x87R", "a class other than numpy.ndarray"),
        (RECONSTRUCT + b"N\x85R", "a class other than numpy.ndarray"),
        (EMPTY, "an array without contents"),
        (EMPTY + b"}b", "arguments that are not a tuple"),
        (EMPTY + b"N}\x86b", "damaged"),
        (FLOAT32, "holds a dtype"),
        (FLOAT32 + b"}b", "arguments that are not a tuple"),
        (b"}" + b"}b", "sets the state of a dict"),
        (b"]" + b"N\x85b", "sets the state of a list"),
        (ORDERED + b")R}b", "sets the state of a OrderedDict"),
        (b"K\x01)R", "calls a int"),
        (DTYPE + b"U\x01O\x85R", "dtype O"),
        (DTYPE + b"U\x02O8K\x00K\x01\x87R", "dtype O8"),
        (DTYPE + b"U\x02V8K\x00K\x01\x87R", "dtype V8"),
        (DTYPE + b"U\x03M8s\x85R", "dtype M8s"),
        (DTYPE + b"U\x02c8\x85R", "dtype c8"),
        (DTYPE + b"U\x02U4\x85R", "dtype U4"),
        (DTYPE + b"U\x05f4,f4\x85R", "dtype f4,f4"),
        (DTYPE + b"]U\x01aU\x02f4\x86a\x85R", "dtype of type list"),
        (DTYPE + b"U\x02f4\x85R(K\x03U\x01|NU\x01a\x85}K\x08K\x01K\x00tb", "structured"),
        (DTYPE + b"U\x02f4\x85R(K\x04U\x01<NNNK\x04K\x01K\x00}tb", "structured or unknown"),
        (
            DTYPE + b"U\x02f4\x85R(K\x03U\x08os.system" b"NNNK\x04K\x01K\x00tb",
            "unknown|is not an opcode",
        ),
        (state(b"K\x01\x85", b"]" + ORDERED + b"a"), "holds the global|damaged"),
        (state(b"K\x01\x85", b"]Na"), "are damaged"),
        (state(b"K\x01\x85", b"U\x03abc"), "with 3 bytes, not 4"),
        (state(b"K\x01\x85", b"U\x05abcde"), "with 5 bytes, not 4"),
        (state(b"K\x02\x85", b"U\x04abcd"), "with 4 bytes, not 8"),
        (FROM_BUFFER + b"(C\x04abcd" + FLOAT32 + b"K\x01\x85U\x01AtR", "order A"),
        (FROM_BUFFER + b"(C\x04abcd" + FLOAT32 + b"K\x01\x85U\x01KtR", "order K"),
        (FROM_BUFFER + b"(C\x04abcd" + FLOAT32 + b"K\x01\x85U\x01KK\x01\x85tR", "damaged"),
        (FROM_BUFFER + b"(}" + FLOAT32 + b"K\x01\x85U\x01CtR", "are damaged"),
        (state(b"J\xff\xff\xff\xff\x85", b"U\x04abcd"), "are damaged"),
        (state(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86", b"U\x04abcd"), "are damaged"),
        (state(b"\x88\x85", b"U\x04abcd"), "are damaged"),
        (state(b"G?\xf0\0\0\0\0\0\0\x85", b"U\x04abcd"), "are damaged"),
        (state(b"]K\x01a", b"U\x04abcd"), "are damaged"),
        (state(b"(" + b"K\x01" * 65 + b"t", b"U\x04abcd"), "are damaged"),
        (state(b"\x8a\x05\x00\xe8\x76\x48\x17\x85", b"U\x04abcd"), "100000000000,"),
        (state(b"K\x00" + LARGE + LARGE + b"\x87", b"U\x00"), "damaged"),
        (ENCODE + _text("6162") + _text("hex") + b"\x86R", "something else than latin1"),
        (ENCODE + _text("a") + _text("rot13") + b"\x86R", "something else than latin1"),
        (ENCODE + b"K\x01" + _text("latin1") + b"\x86R", "damaged|something else"),
        (ENCODE + b"X\x02\x00\x00\x00\xc4\x80" + _text("latin1") + b"\x86R", "damaged"),
        (ENCODE + b")R", "damaged"),
        (ORDERED + b"K\x05\x85R", "damaged"),
        (ORDERED + b"]](K\x01K\x02K\x03ea\x85R", "damaged"),
        (b"c__builtin__\nbytes\nK\x05\x85R", "damaged"),
        (b"c__builtin__\nset\n]N\x85a\x85R", "a tuple as a key or set member"),
        (b"}N\x85Ns", "a tuple as a key or set member"),
        (b"}]Ns", "a list as a key or set member"),
        (b"}" + state(b")", b"U\x04abcd") + b"Ns", "a ndarray as a key"),
        (b"}\x8a\x09" + b"\xff" * 8 + b"\x01" + b"Ns", "a int as a key"),
        (b"\x8b\x04\x00\x00\x00abcd", "opcode LONG4"),
        (b"\x82\x01", "opcode EXT1"),
        (b"\x83\x01\x00", "opcode EXT2"),
        (b"\x84\x01\x00\x00\x00", "opcode EXT4"),
        (b"Pos.system\n", "opcode PERSID"),
        (b"NQ", "opcode BINPERSID"),
        (b"\x97", "opcode NEXT_BUFFER"),
        (b"\x97\x98", "opcode NEXT_BUFFER"),
        (ORDERED + b")\x81", "opcode NEWOBJ"),
        (b"(" + ORDERED + b"o", "opcode OBJ"),
        (b"(icollections\nOrderedDict\n", "opcode INST"),
        (b"\x80\x06N", "protocol 6"),
        (b"h\x09", "damaged"),
        (b"000", "damaged"),
        (b"Na", "no list"),
        (b"N(Ne", "no list"),
        (b"](NNu", "no dict"),
        (b"}(Nu", "damaged"),
        (b"](N\x90", "no set"),
        (b"NN\x93", "something else than text|other than text|by something else"),
        (b"S'abc\n", "str without quotes"),
        (b"S'\\xZZ'\n", "damaged"),
        (b"T\xff\xff\xff\xffabc", "cut off"),
        (b"L" + b"9" * 5000 + b"L\n", "damaged"),
        (b"B\xff\xff\xff\xffabc", "cut off"),
        (b"\x8e" + struct.pack("<Q", 2**60) + b"abc", "cut off"),
        (b"\x8e" + struct.pack("<Q", 10**11) + b"abc", "cut off"),
        (b"\x8d" + struct.pack("<Q", 2**63 + 1) + b"abc", "cut off|damaged"),
        (b"\x96" + struct.pack("<Q", 10**11) + b"abc", "cut off"),
    ],
)  # fmt: skip
def test_odd_opcodes_are_refused_without_taking_memory(refused, value, wanted):
    stream = b"\x80\x04}" + _text("a") + value + b"s."
    tracemalloc.start()
    message = refused(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert any(part in message for part in wanted.split("|"))
    assert peak < 2**20


def test_large_memo_indices_and_frames_take_no_memory(load):
    tracemalloc.start()
    value = load(
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}r\xff\xff\xff\xff0j\xff\xff\xff\xff."
    )
    assert value == {} and tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def doubled(open_: bytes, close: bytes, times: int = 200) -> bytes:
    """A value that holds itself 2 ** times: each level is memoised and put twice into the next."""
    levels = [open_ + b"h\x01h\x01" + close + b"q\x010" for _ in range(times)]
    return b"Nq\x010" + b"".join(levels) + b"h\x01"


@pytest.mark.parametrize("kind", [(b"(", b"t"), (b"](", b"e"), (b"(", b"l"), (b"", b"\x86")])
def test_doubled_structures_load_in_linear_time(load, refused, kind):
    value = load(b"\x80\x04}" + _text("a") + doubled(*kind) + b"s.")["a"]
    assert value[0] is value[1] and value[0][0] is value[1][1]
    # the same where a careless reader would hash or print it
    assert "as a key" in refused(b"\x80\x04}" + doubled(*kind) + b"Ns.")
    assert "set member" in refused(b"\x80\x04\x8f(" + doubled(*kind) + b"\x90.")
    assert "dtype of type" in refused(b"\x80\x04" + DTYPE + doubled(*kind) + b"\x85R.")
    assert "version of type" in refused(b"\x80\x04" + EMPTY + b"(" + doubled(*kind) + b"NNNNtb.")


def test_deep_nesting_neither_recurses_nor_crashes(load, refused):
    depth = 200_000
    for make in (b"]" * depth + b"a" * (depth - 1), b")" + b"\x85" * depth):
        value = load(b"\x80\x04}" + _text("a") + make + b"s.")["a"]
        for _ in range(depth - 1):
            value = value[0]
        assert len(value) <= 1
    assert "as a key" in refused(b"\x80\x04}" + b")" + b"\x85" * depth + b"Ns.")
    boxed = b"U\x01a" + b"\x85" * depth  # with a Python 2 str inside
    assert load(b"\x80\x04}" + _text("a") + boxed + b"s.")


@pytest.mark.parametrize(
    "call",
    [
        ENCODE + b"h\x01" + _text("latin1") + b"\x86R",
        b"c__builtin__\nset\nh\x02\x85R",
        b"c__builtin__\nfrozenset\nh\x02\x85R",
        ORDERED + b"h\x03\x85R",
    ],
)
def test_copies_of_one_value_are_bounded(refused, call):
    text = "x" * 5000
    numbers = b"](" + b"".join(struct.pack("<cH", b"M", i) for i in range(5000)) + b"e"
    pairs = b"](" + b"K\x01N\x86" * 5000 + b"e"
    start = b"\x80\x04}" + _text(text) + b"q\x010" + numbers + b"q\x020" + pairs + b"q\x030"
    body = b"](" + call * 1000 + b"e"
    assert "over and over" in refused(start + _text("a") + body + b"s.")


def test_many_arguments_are_refused(refused):
    many = b"(" + b"N" * 100_000 + b"tq\x010"
    assert "too many" in refused(b"\x80\x04}" + many + DTYPE + b"h\x01R.")
    assert "too many" in refused(b"\x80\x04}" + many + FLOAT32 + b"h\x01b.")


def test_shared_and_cyclic_containers_stay_so(load):
    shared = [np.zeros(2)]
    cycle: list = []
    cycle.append(cycle)
    for protocol in range(6):
        got = load(pickle.dumps({"a": shared, "b": (shared, 1), "c": cycle}, protocol))
        assert got["a"] is got["b"][0]
        assert got["c"][0] is got["c"]
    pair = (b"a", np.zeros(2))
    for protocol in range(3):
        got = load(python2_dumps({"a": pair, "b": [pair]}, protocol))
        assert got["a"] is got["b"][0] and got["a"][0] == "a"


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
        (gzip.compress(pickle.dumps({}), mtime=0), "gunzip"),
        (b"\xff\xfe" * 20, "is not a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a pickle"),
        (pickle.dumps([np.zeros(2)]), "holds a list, not a dict of arrays"),
        (pickle.dumps(np.zeros(2)), "holds a ndarray, not a dict of arrays"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2), "PyTorch"),
        (pickle.dumps({}) + b"\n", "has 1 bytes after the end"),
        (pickle.dumps({}) + pickle.dumps({}), "after the end of the pickle"),
        (pickle.dumps({"a": np.array([None])}), "dtype O8"),
        (pickle.dumps({"a": np.zeros(2, "f4,f4")}), "dtype V8"),
        (pickle.dumps({"a": np.zeros(2, "m8[s]")}), "dtype m8"),
        (pickle.dumps({"a": 1j}), "builtins.complex"),
        (pickle.dumps({"a": pathlib.PurePosixPath("b")}), "pathlib"),
    ],
)
def test_other_files_are_refused_with_a_reason(refused, content, wanted):
    assert wanted in refused(content)


def test_a_pytorch_file_is_refused_with_a_hint(refused):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    message = refused(file.getvalue())
    assert "PyTorch" in message and "detectron2" in message


def test_paths_that_are_no_files_are_refused(tmp_path):
    missing = tmp_path / "missing.pkl"
    for path, wanted in [
        (tmp_path, "is not a file"),
        ("/dev/zero", "is not a file"),
        (missing, "cannot be read: No such file"),
    ]:
        with pytest.raises(UserError, match=f"^{path} {wanted}"):
            pickles.load(str(path))
