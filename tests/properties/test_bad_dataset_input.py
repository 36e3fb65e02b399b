"""Whatever is wrong with a data set: a one-line error that names it, or a valid sample."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from multimae_eo.errors import MultiMAEError
from multimae_eo.sample import Sample
from multimae_eo.sources.dataset.dataset_file import DatasetFileSource
from multimae_eo.sources.dataset.schema import (
    DATASET_KEYS,
    LABEL_KEYS,
    MODALITY_KEYS,
    read_dataset_file,
)

SIZE = 6
KEYS = ("a", "b", "c")


def tif(path, pixels, bands=(), nodata=None):
    count, height, width = pixels.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        dtype=pixels.dtype,
        count=count,
        height=height,
        width=width,
        nodata=nodata,
        compress="deflate",
    ) as out:
        out.write(pixels)
        for i, name in enumerate(bands, 1):
            out.set_band_description(i, name)


def optical(seed, count=3):
    return np.random.default_rng(seed).integers(1, 999, (count, SIZE, SIZE)).astype(np.uint16)


def build(folder):
    """A valid data set; returns its YAML record."""
    for name in ("s2", "dem", "cover", "mask"):
        (folder / name).mkdir()
    for i, key in enumerate(KEYS):
        tif(folder / f"s2/{key}.tif", optical(i), ("B4", "B3", "B2"), nodata=0)
        np.save(folder / f"dem/{key}.npy", np.full((SIZE, SIZE), i, np.float32))
        tif(folder / f"cover/{key}.tif", np.full((1, SIZE, SIZE), 10, np.uint8))
        Image.fromarray(np.eye(SIZE, dtype=np.uint8)).save(folder / f"mask/{key}.png")
    (folder / "split.csv").write_text("id,split\na,train\nb,val\nc,test\n")
    return {
        "name": "world",
        "chips": "s2/{id}.tif",
        "size": SIZE,
        "modalities": {
            "rgb": {"sensor": "s2", "bands": ["B4", "B3", "B2"], "level": "l2a", "scale": 0.0001},
            "elevation": {"path": "dem/{id}.npy", "band": "cop_dem"},
            "landcover": {"path": "cover/{id}.tif", "legend": "esa_worldcover"},
        },
        "labels": {"mask": "mask/{id}.png", "classes": ["no", "yes"], "ignore": [255]},
        "splits": "split.csv",
    }


# Each corruption returns what the error must name, or "" where it may also go well.


def drop_band(draw, folder, record, key):
    keep = draw(st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True))
    names = [("B4", "B3", "B2")[i] for i in keep]
    tif(folder / f"s2/{key}.tif", optical(0)[keep], names, nodata=0)
    return f"{key}.tif"


def rename_bands(draw, folder, record, key):
    names = draw(st.lists(st.text("B1234_ x", max_size=4), min_size=3, max_size=3))
    tif(folder / f"s2/{key}.tif", optical(0), names, nodata=0)
    return ""  # they may still be the right ones


def change_type(draw, folder, record, key):
    dtype = draw(st.sampled_from(["uint8", "int16", "float32", "float64", "complex64"]))
    tif(folder / f"s2/{key}.tif", optical(0).astype(dtype), ("B4", "B3", "B2"))
    return f"{key}.tif"


def change_size(draw, folder, record, key):
    tif(folder / f"s2/{key}.tif", optical(0)[:, : draw(st.integers(1, 5))], ("B4", "B3", "B2"))
    return f"{key}.tif"


def truncate(draw, folder, record, key):
    name = draw(st.sampled_from(["s2/{}.tif", "cover/{}.tif", "dem/{}.npy", "mask/{}.png"]))
    path = folder / name.format(key)
    data = path.read_bytes()
    path.write_bytes(data[: draw(st.integers(0, len(data) - 1))])
    return ""  # what is cut off may be padding


def flip_bytes(draw, folder, record, key):
    name = draw(st.sampled_from(["s2/{}.tif", "cover/{}.tif", "dem/{}.npy", "mask/{}.png"]))
    path = folder / name.format(key)
    data = bytearray(path.read_bytes())
    for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
        data[place] ^= draw(st.integers(1, 255))
    path.write_bytes(data)
    return ""


def unknown_key(draw, folder, record, key):
    where, valid = draw(
        st.sampled_from(
            [
                (record, DATASET_KEYS),
                (record["modalities"]["rgb"], MODALITY_KEYS),
                (record["labels"], LABEL_KEYS),
            ]
        )
    )
    name = draw(st.text("abcdefgh_", min_size=1, max_size=8).filter(lambda k: k not in valid))
    where[name] = 1
    return name


def class_outside(draw, folder, record, key):
    cover = np.full((1, SIZE, SIZE), 10, np.uint8)
    cover[0, 0, 0] = draw(st.integers(1, 254).filter(lambda i: i % 10 and i != 95))
    tif(folder / f"cover/{key}.tif", cover)
    return f"{key}.tif"


def mask_outside(draw, folder, record, key):
    mask = np.eye(SIZE, dtype=np.uint8)
    mask[0, 0] = draw(st.integers(2, 254))
    Image.fromarray(mask).save(folder / f"mask/{key}.png")
    return f"{key}.png"


def spoil_split(draw, folder, record, key):
    rows = draw(
        st.sampled_from(["", "id,split\n", "id,split\na,\n", "id\na\n", "id,split\nz,val\n"])
    )
    (folder / "split.csv").write_text(rows)
    return "split.csv"


def random_split(draw, folder, record, key):
    (folder / "split.csv").write_bytes(draw(st.binary(max_size=60)))
    return "split.csv"


def missing_file(draw, folder, record, key):
    name = draw(st.sampled_from(["cover/{}.tif", "dem/{}.npy", "mask/{}.png"])).format(key)
    (folder / name).unlink()
    return name


def all_nodata(draw, folder, record, key):
    tif(folder / f"s2/{key}.tif", np.zeros((3, SIZE, SIZE), np.uint16), ("B4", "B3", "B2"), 0)
    if draw(st.booleans()):
        np.save(folder / f"dem/{key}.npy", np.full((SIZE, SIZE), np.nan, np.float32))
        tif(folder / f"cover/{key}.tif", np.zeros((1, SIZE, SIZE), np.uint8))
        return f"'{key}'"
    return ""


CORRUPTIONS = (
    drop_band, rename_bands, change_type, change_size, truncate, flip_bytes, unknown_key,
    class_outside, mask_outside, spoil_split, random_split, missing_file, all_nodata,
)  # fmt: skip


def check(sample):
    """What every sample promises."""
    assert isinstance(sample, Sample)
    assert sample.pixels
    for name, pixels in sample.pixels.items():
        assert pixels.ndim == 3
        assert np.isfinite(pixels.astype(np.float64)).all()
        valid = sample.valid.get(name)
        if valid is not None:
            assert valid.shape[0] in (1, len(pixels))
            assert valid.shape[1:] == pixels.shape[1:]
            assert valid.any()
    assert set(np.unique(sample.label)) <= {-1, 0, 1}


def refusal(act):
    """The message of the package's own error, or None; any other error is a failure."""
    try:
        act()
    except MultiMAEError as error:
        return str(error)
    return None


def read_all(path):
    source = DatasetFileSource(path)
    for index in range(len(source)):
        check(source.read(index))


@settings(max_examples=90, deadline=None)
@given(data=st.data(), corruption=st.sampled_from(CORRUPTIONS), key=st.sampled_from(KEYS))
@pytest.mark.slow
def test_a_corruption_gives_a_one_line_error_naming_it_or_a_valid_sample(data, corruption, key):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        record = build(folder)
        culprit = corruption(data.draw, folder, record, key)
        path = folder / "data.yaml"
        path.write_text(yaml.safe_dump(record))
        message = refusal(lambda: read_all(path))
        if message is None:
            assert not culprit, f"{corruption.__name__} of {culprit} went unnoticed"
        else:
            assert "\n" not in message
            assert (culprit or name) in message


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80))
def test_any_text_is_refused_in_one_line(text):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "data.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        message = refusal(lambda: read_dataset_file(path))
        assert message is not None
        assert "\n" not in message
        assert str(path) in message


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(), st.text(max_size=6),
    st.sampled_from(["s2", "B4", "l2a", "esa_worldcover", "{id}.tif", "nan"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.one_of(st.text(max_size=5), st.integers(0, 9)), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    modality=st.dictionaries(st.sampled_from(MODALITY_KEYS), VALUES, max_size=4),
    labels=st.dictionaries(st.sampled_from(LABEL_KEYS), VALUES, max_size=3),
    top=st.dictionaries(st.sampled_from(DATASET_KEYS), VALUES, max_size=2),
)
@pytest.mark.slow
def test_any_value_of_any_key_is_taken_or_refused_in_one_line(modality, labels, top):
    record = {
        "chips": "{id}.tif",
        "modalities": {"m": {"sensor": "s2", "bands": ["B4"], "level": "l2a", **modality}},
        **top,
    }
    if labels:
        record["labels"] = labels
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "data.yaml"
        path.write_text(yaml.safe_dump(record))
        message = refusal(lambda: read_dataset_file(path)) or str(path)
        assert "\n" not in message
        assert str(path) in message
