"""Pickles are decoded as data: whatever is in them, nothing runs and nothing is imported."""

from __future__ import annotations

import contextlib
import datetime
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multimae_eo.errors import FormatError
from multimae_eo.sources.geobench import safe_pickle
from multimae_eo.sources.geobench.safe_pickle import (
    OpaqueObject,
    StoredArray,
    load_pickle,
    load_pickle_text,
)
from tests.support.geobench_files import _Named, pickled


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def touch(path: str) -> Calls:
    return Calls(os.system, f"touch {path}")


def calls_by_name(module: str, name: str, argument: Any) -> bytes:
    """``module.name(argument)`` in opcodes, also for names that Python would not pickle."""
    body = pickle.dumps(argument, protocol=3)[2:-1]
    return b"\x80\x03c" + f"{module}\n{name}\n".encode() + body + b"\x85R."


HOSTILE = {
    "os.system": lambda path: pickle.dumps(touch(path)),
    "inside a container": lambda path: pickle.dumps({"label": [1, {"x": touch(path)}]}),
    "eval": lambda path: pickle.dumps(Calls(eval, f"open({path!r}, 'w')")),
    "subprocess": lambda path: pickle.dumps(Calls(subprocess.run, ["touch", path])),
    "a class": lambda path: pickle.dumps(Calls(threading.Thread, None)),
    "builtins.getattr": lambda path: calls_by_name("builtins", "getattr", path),
    "an attribute of an allowed class": lambda path: calls_by_name(
        "geobench.dataset", "Sentinel2.__init__.__globals__", path
    ),
    "a module that geobench imports": lambda path: calls_by_name("geobench.dataset", "os", path),
    "a module under geobench": lambda path: calls_by_name("geobench.evil", "Sentinel2", path),
    "numpy's own loader": lambda path: calls_by_name("numpy", "load", path),
    "an array of objects": lambda path: pickle.dumps(np.array([touch(path)], dtype=object)),
    "a scalar that unpickles": lambda path: pickle.dumps(
        Calls(np.float64(1).__reduce__()[0], np.dtype("O"), pickle.dumps(touch(path)))
    ),
    "a masked array": lambda path: pickle.dumps(np.ma.masked_array([1, 2], [True, False])),
    "a persistent id": lambda path: b"\x80\x04P" + path.encode() + b"\n.",
    "an extension": lambda path: b"\x80\x04\x82\x01.",
    "a state for our own class": lambda path: (
        b"\x80\x04cgeobench.dataset\nSentinel2\n}(X\x01\x00\x00\x00xI1\nub."
    ),
    "slots for our own class": lambda path: (
        b"\x80\x04cnumpy._core.multiarray\nscalar\nN}(X\x01\x00\x00\x00xI1\nu\x86b."
    ),
}


@pytest.mark.parametrize("payload", HOSTILE.values(), ids=HOSTILE)
def test_hostile_pickles_are_refused_and_do_nothing(payload, tmp_path):
    done = tmp_path / "done"
    data = payload(str(done))
    before = {
        n: dict(vars(getattr(safe_pickle, n))) for n in ("OpaqueObject", "StoredArray", "_Scalar")
    }
    for read in (
        lambda: load_pickle(data, "f.hdf5"),
        lambda: load_pickle_text(str(data), "f.hdf5"),
    ):
        with pytest.raises(FormatError, match=r"f\.hdf5"):
            read()
    assert not done.exists()
    assert before == {n: dict(vars(getattr(safe_pickle, n))) for n in before}


def test_the_refusal_names_the_file_and_the_class():
    with pytest.raises(FormatError, match=r"id_7\.hdf5.*refused.*os|posix|nt\.system"):
        load_pickle(pickle.dumps(Calls(os.system, "true")), "id_7.hdf5")
    with pytest.raises(FormatError, match=r"subprocess\.Popen"):
        load_pickle(pickle.dumps(Calls(subprocess.Popen, "true")), "f")


def test_reading_imports_nothing(tmp_path):
    """A pickle that names rasterio's and geobench's classes loads where neither is installed."""
    file = tmp_path / "x.pkl"
    file.write_bytes(
        pickled([_Named("rasterio.crs", "CRS", "EPSG:4326"), _Named("geobench.task", "Accuracy")])
    )
    code = f"""
import sys
from multimae_eo.sources.geobench.safe_pickle import load_pickle
before = set(sys.modules)
crs, _ = load_pickle(open({str(file)!r}, "rb").read(), "x")
print(crs.state, *(m for m in set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["EPSG:4326"]


NUMBERS = st.one_of(
    hnp.integer_dtypes(endianness="?"), hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?", sizes=(16, 32, 64)), hnp.boolean_dtypes(),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    array=hnp.arrays(NUMBERS, hnp.array_shapes(max_dims=3, max_side=4)),
    protocol=st.integers(3, 5),
    fortran=st.booleans(),
)
def test_arrays_and_numbers_are_those_that_were_stored(array, protocol, fortran):
    stored = np.asfortranarray(array) if fortran else array
    found = load_pickle(pickle.dumps([stored, stored.flat[0]], protocol=protocol), "f")
    assert isinstance(found[0], StoredArray)
    np.testing.assert_array_equal(found[0].values, array)
    assert found[0].values.dtype == array.dtype
    np.testing.assert_array_equal(found[1], array.flat[0])
    assert isinstance(found[1], int | float | bool)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=PLAIN, protocol=st.integers(3, 5))
def test_plain_values_survive_and_so_does_their_text(value, protocol):
    data = pickle.dumps(value, protocol=protocol)
    assert load_pickle(data, "f") == value
    assert load_pickle_text(str(data), "f") == value


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=60), prefix=st.sampled_from([b"", b"\x80\x04", b"\x80\x04}("]))
def test_any_bytes_are_decoded_or_refused(data, prefix):
    with contextlib.suppress(FormatError):
        load_pickle(prefix + data, "f")


def test_classes_of_geobench_become_inert():
    made = _Named(
        "ccb.io.dataset", "Sentinel2", {"name": "02 - Blue", "wavelength": 0.49}, (1, "x")
    )
    found = load_pickle(pickled({"info": made, "x": 1}), "f")["info"]
    assert type(found) is OpaqueObject
    assert found.arguments == (1, "x")
    ordered = pickle.dumps(OrderedDict(a=1))
    assert load_pickle(ordered, "f") == OrderedDict(a=1)
    assert found.state == {"name": "02 - Blue", "wavelength": 0.49}


def test_real_classes_pickled_by_their_libraries_can_be_read():
    crs, affine = pytest.importorskip("rasterio.crs"), pytest.importorskip("affine")
    stored = {
        "crs": crs.CRS.from_epsg(32631),
        "transform": affine.Affine(10.0, 0.0, 3e5, 0.0, -10.0, 5e6),
        "when": datetime.datetime(2020, 1, 2, 3, 4),
    }
    found = load_pickle(pickle.dumps(stored, protocol=4), "f")
    assert crs.CRS.from_wkt(found["crs"].state).to_epsg() == 32631
    assert found["transform"].arguments[:6] == (10.0, 0.0, 3e5, 0.0, -10.0, 5e6)
    assert found["when"] == stored["when"]


@pytest.mark.parametrize(
    "text", ["", "b'", "__import__('os').system('true')", "b'' + b''", "(" * 5000, "b'\\xzz'", 7]
)
def test_only_a_bytes_literal_is_taken_for_one(text):
    with pytest.raises(FormatError):
        load_pickle_text(str(text), "f.hdf5")


def test_a_few_bytes_cannot_ask_for_gigabytes():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_pickle(b"\x80\x04Nr" + struct.pack("<I", 2**28) + b".", "f") is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_pickle_of_absurd_size_is_not_tried(monkeypatch):
    monkeypatch.setattr(safe_pickle, "LARGEST", 100)
    with pytest.raises(FormatError, match="at most 100"):
        load_pickle(pickle.dumps("x" * 200), "f")
