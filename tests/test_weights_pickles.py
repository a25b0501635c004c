"""Weight files unpickle to what was pickled, and hostile ones do nothing at all."""

from __future__ import annotations

import gzip
import io
import math
import pathlib
import pickle
import pickletools
import struct
import sys
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
    """Equal values of equal types, arrays bit by bit; NumPy makes some byte orders native."""
    assert type(got) is type(wanted)
    if isinstance(wanted, np.ndarray | np.generic):
        native = wanted.dtype.newbyteorder("=")
        assert (got.dtype.newbyteorder("="), got.shape) == (native, wanted.shape)
        assert got.astype(native).tobytes() == wanted.astype(native).tobytes()
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


@pytest.mark.parametrize(("python2", "protocol"), [(True, 0), (True, 2), (False, 3), (False, 5)])
def test_every_truncation_is_refused(refused, python2, protocol):
    stream = dumps({"blobs": {b"a": np.arange(3.0)}, "b": [1, 2.5, b"c"]}, protocol, python2)
    for length in range(len(stream)):
        message = refused(stream[:length])
        assert "is cut off" in message or "is empty" in message


@pytest.mark.thorough
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
torch._utils _rebuild_tensor_v2; maskx_tf.weights.pickles load;
numpy.core.multiarray _reconstruct.__globals__
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
        assert f"calls for `{module}.{name}`" in message, form
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


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
EMPTY = RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R"
FLOAT32 = b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"


def dtype_state(*state) -> bytes:
    return FLOAT32 + pickle.dumps(state, 2)[2:-1] + b"b"


def array_state(shape: tuple, data: bytes) -> bytes:
    """An array of version 1, C order."""
    state = pickle.dumps((1, shape), 2)[2:-1].replace(b"\x86", b"")
    return EMPTY + b"(" + state + FLOAT32 + b"\x89" + data + b"tb"


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (b"}}b", "sets the state of a dict"),
        (b"ccollections\nOrderedDict\n)R}" + _text("get") + b"Nsb", "state of a OrderedDict"),
        (b"ccollections\nOrderedDict\n}b", "sets the state of a type"),
        (RECONSTRUCT + b"N}" + _text("__defaults__") + b")s\x86b", "sets the state of a builtin"),
        (b"cnumpy\ndtype\nN}" + _text("__defaults__") + b")s\x86b", "sets the state of a function"),
        (dtype_state(3, "<", None, ("a",), {}, 8, 1, 0), "structured or unknown"),
        (dtype_state(3, "<", None, None, None, -1, -1, 63), "structured or unknown"),
        (array_state((1,), b"U\x03abc"), "damaged"),
        (array_state((-1, -1), b"U\x04abcd"), "damaged"),
        (array_state((2,), b"U\x04abcd"), "damaged"),
        (array_state((1,), b"]Na"), "damaged"),
        (b"Pos.system\n", "damaged"),
        (b"\x82\x01", "damaged"),
        (b"K\x01)R", "damaged"),
        (b"h\x09", "damaged"),
        (b"Na", "damaged"),
    ],
)
def test_states_and_opcodes_that_no_weights_have_are_refused(refused, value, wanted):
    assert wanted in refused(b"\x80\x04}" + _text("a") + value + b"s.")


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
        (b"\xff\xfe" * 20, "not a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a pickle"),
        (pickle.dumps([np.zeros(2)]), "holds a list, not a dict of arrays"),
        (pickle.dumps(np.zeros(2)), "holds a ndarray, not a dict of arrays"),
        (pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2), "PyTorch"),
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
