"""GEO-Bench-2's data sets as sources: what a chip holds, its label, and every error message."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from multimae_eo import catalog, open_source
from multimae_eo.cli import main
from multimae_eo.errors import BandError, ClassMapError, ConfigError, FormatError
from multimae_eo.sources.geobench2.records import DATASETS2, GROUPS, UNSUPPORTED, find_dataset2
from multimae_eo.sources.geobench2.source import GeoBench2Source, tortilla_files
from multimae_eo.sources.geobench2.tortilla import read_image, stored_files
from tests.support.tortilla_files import (
    LAYOUTS,
    Entry,
    geotiff,
    tortilla_bytes,
    write_geobench2,
)


def names_of(name):
    return DATASETS2[name].classes if LAYOUTS[name].label == "names" else ()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("geobench2")
    for name in DATASETS2:
        write_geobench2(root, name, names=names_of(name))
    return root


def test_records_fit_what_the_generators_store():
    assert set(LAYOUTS) == set(DATASETS2)
    for name, data in DATASETS2.items():
        layout = LAYOUTS[name]
        order = [image for image, *_ in layout.images]
        channels = {image: count for image, count, *_ in layout.images}
        assert {n: order.index(n) for n in data.images} == dict(data.images)
        assert len(data.classes) == layout.classes
        if layout.label == "map":
            assert data.label_image == len(order)
        for layer in data.layers:
            for image, channel in layer.stored_channels.values():
                assert channel < channels[image]


def test_capability_groups_name_known_data_sets():
    names = {n for members in GROUPS.values() for n in members}
    assert names == set(DATASETS2) | set(UNSUPPORTED)
    assert not set(DATASETS2) & set(UNSUPPORTED)


@pytest.mark.parametrize(
    ("name", "message"),
    [("benv3", "did you mean 'benv2'"), ("pastis", "several dates"), ("substation", "instances")],
)
def test_other_data_sets_are_refused_with_the_reason(name, message):
    with pytest.raises(ConfigError, match=message):
        find_dataset2(name)


def test_files_of_a_data_set(tmp_path):
    folder = tmp_path / "spacenet2"
    folder.mkdir()
    parts = [folder / f"geobench_spacenet2.{i:04d}.part.tortilla" for i in range(2)]
    for part in parts:
        part.touch()
    assert tortilla_files(folder) == (tuple(parts), "spacenet2")
    assert tortilla_files(parts[1]) == (tuple(parts), "spacenet2")
    (tmp_path / "geobench_caffe.tortilla").touch()
    assert tortilla_files(tmp_path / "caffe")[0] == (tmp_path / "geobench_caffe.tortilla",)
    (tmp_path / "renamed").mkdir()
    (tmp_path / "renamed" / "benv2.tortilla").touch()
    assert tortilla_files(tmp_path / "renamed" / "benv2.tortilla")[1] == "benv2"
    with pytest.raises(ConfigError, match=r"geobench_benv2\.tortilla"):
        tortilla_files(tmp_path / "benv2")
    with pytest.raises(ConfigError, match="no such file"):
        tortilla_files(tmp_path / "geobench_none.tortilla")


@pytest.mark.parametrize("name", list(DATASETS2))
def test_every_data_set_is_read(root, name):
    source = open_source(f"geobench2:{root}/{name}")
    data = DATASETS2[name]
    assert len(source) == 16
    assert source.splits == ("train", "val", "test")
    sample = source.read(0)
    assert set(sample.pixels) == set(source.modalities.names)
    for modality in source.modalities.values():
        assert len(sample.pixels[modality.name]) == modality.channels
    if data.label == "map":
        assert sample.label.shape == (16, 16)
        assert 0 <= sample.label.min() <= sample.label.max() < len(data.classes)
    elif data.label == "classes":
        assert sample.label.tolist() == [1.0, 1.0] + [0.0] * (len(data.classes) - 2)
    else:
        assert sample.label == 0
        assert source.read(1).label == 1


def test_bands_are_those_whose_pixels_are_there(root):
    """benv2: channel 2 is B3; VH is stored first. treesatai: near infrared is stored first."""

    def images_of(path, row):
        return [read_image(path, f) for f in stored_files(path, stored_files(path)[row].offset)]

    source = GeoBench2Source(root / "benv2")
    decibel, stored = images_of(source.files[0], 5)
    sample = source.read(5, ["rgb", "sentinel1"])
    assert set(sample.pixels) == {"rgb", "sentinel1"}
    np.testing.assert_array_equal(sample.pixels["rgb"], stored[[3, 2, 1]])
    np.testing.assert_array_equal(sample.pixels["sentinel1"], decibel[[1, 0]])
    assert sample.calibration["rgb"].level == "l2a"
    assert sample.time == "2017-07-14"
    assert sample.geometry is not None
    assert sample.geometry.bounds == (500000.0, 5199840.0, 500160.0, 5200000.0)
    trees = GeoBench2Source(root / "treesatai")
    aerial = images_of(trees.files[0], 0)[0]
    np.testing.assert_array_equal(trees.read(0).pixels["aerial_rgb"], aerial[[3, 1, 2]])


def test_other_modalities_and_processes(root):
    source = open_source(f"geobench2:{root}/benv2?modalities=sentinel2_l2a_bands")
    assert source.read(0).pixels["sentinel2_l2a_bands"].shape == (12, 16, 16)
    again = pickle.loads(pickle.dumps(source))
    assert again.keys == source.keys
    np.testing.assert_array_equal(
        again.read(3).pixels["sentinel2_l2a_bands"], source.read(3).pixels["sentinel2_l2a_bands"]
    )
    with pytest.raises(BandError, match="cannot fill"):
        open_source(f"geobench2:{root}/caffe?modalities=rgb")
    with pytest.raises(ConfigError, match="no option 'partition'"):
        open_source(f"geobench2:{root}/caffe?partition=default")


def chip(split="train", label=None, channels=1, **columns):
    images = [Entry(name="image", content=geotiff(np.ones((channels, 8, 8), np.uint8)),
                    file_format="GTiff", split=split, columns=columns)]  # fmt: skip
    if label is not None:
        images.append(Entry(name="label", content=geotiff(label), file_format="GTiff", split=split,
                            columns=columns))  # fmt: skip
    return tortilla_bytes(images)


def written(tmp_path, *chips, name="caffe"):
    entries = [
        Entry(name=f"c{i}", content=c, file_format="TORTILLA", split="train")
        for i, c in enumerate(chips)
    ]
    path = tmp_path / f"geobench_{name}.tortilla"
    path.write_bytes(tortilla_bytes(entries))
    return path


def test_damaged_files_are_refused(tmp_path):
    label = np.zeros((1, 8, 8), np.uint8)
    good = written(tmp_path, chip(label=label))
    assert GeoBench2Source(good).read(0).label.shape == (8, 8)
    written(tmp_path, chip(label=label + 9))
    with pytest.raises(ClassMapError, match="holds 9"):
        GeoBench2Source(good).read(0)
    written(tmp_path, chip())
    with pytest.raises(FormatError, match="has 1 images, expected at least 2"):
        GeoBench2Source(good).read(0)
    written(tmp_path, b"no tortilla")
    with pytest.raises(FormatError, match="no tortilla at byte 200"):
        GeoBench2Source(good).read(0)
    content = good.read_bytes()
    damages = (b"", b"PK" + content[2:], content[:300], content[:2] + b"\xff" * 16,
               content[:-40] + b"?" * 40)  # fmt: skip
    for damaged in damages:
        good.write_bytes(damaged)
        with pytest.raises(FormatError, match="download it again"):
            GeoBench2Source(good)
    twice = [Entry(name="same", content=chip(), file_format="TORTILLA", split="train")] * 2
    good.write_bytes(tortilla_bytes(twice))
    with pytest.raises(FormatError, match="2 chips are called 'same'"):
        GeoBench2Source(good)
    good.write_bytes(
        tortilla_bytes([Entry(name="a", content=geotiff(label), file_format="GTiff", split="test")])
    )
    with pytest.raises(FormatError, match="single file"):
        GeoBench2Source(good)


def test_ignored_and_merged_classes(tmp_path):
    stored = np.full((1, 8, 8), -1, np.int16)
    stored[0, 0, 0] = 1
    path = written(tmp_path, chip(label=stored, channels=6), name="burn_scars")
    source = GeoBench2Source(path)
    label = source.read(0).label
    assert (label[0, 0], label[0, 1]) == (1, -1)
    flair = np.full((1, 8, 8), 19, np.uint8)
    flair[0, 0, 0] = 1
    path = written(tmp_path, chip(label=flair, channels=5), name="flair2")
    label = GeoBench2Source(path).read(0).label
    assert (label[0, 0], label[0, 1]) == (0, 12)


@pytest.mark.parametrize("value", [99, "no class", None])
def test_an_unknown_class_is_refused(tmp_path, value):
    path = written(tmp_path, chip(labels=value, channels=6), name="forestnet")
    with pytest.raises(ClassMapError, match="expected one of 12 classes"):
        GeoBench2Source(path).read(0)


@pytest.mark.slow
def test_the_benchmark_aggregates_by_capability(root, tmp_path, capsys):
    from multimae_eo.evaluation.geobench_score import aggregate, load_normaliser
    from multimae_eo.network.config import EncoderConfig, InputConfig, ModelConfig
    from multimae_eo.network.multimae import MultiMAE

    spans = {n: [0.1, 0.9] for n in DATASETS2}
    (root / "normalizer.json").write_text(json.dumps(spans))
    source = open_source(f"geobench2:{root}/benv2?modalities=rgb")
    config = ModelConfig(
        encoder=EncoderConfig(width=16, depth=1, heads=2),
        inputs={"rgb": InputConfig(size=16, patch=4)},
    )
    MultiMAE(source.modalities, (), config, source.statistics()).save_pretrained(root / "model")
    arguments = ["benchmark", "geobench2", "--root", root, "--model", root / "model", "--out",
                 tmp_path / "out", "--datasets", "so2sat,burn_scars,cloudsen12", "--methods",
                 "linear", "--features", "mean"]  # fmt: skip
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    rows = pq.read_table(tmp_path / "out/results.parquet").to_pylist()
    assert {r["data set"] for r in rows} == {"so2sat", "burn_scars", "cloudsen12"}
    scores = {r["data set"]: [r["score"]] for r in rows if r["features"] == "pre-trained"}
    lines = (tmp_path / "out/aggregate.csv").read_text(encoding="utf-8").splitlines()
    line = next(x for x in lines if "Multi-spectral" in x and '"pre-trained' in x)
    expected = aggregate(scores, load_normaliser(root / "normalizer.json")).score
    assert float(line.split('",3,')[1].split(",")[0]) == pytest.approx(expected)
    assert line.endswith(",8"), "of the group's eight data sets"
    assert "# GEO-Bench-2" in (tmp_path / "out/results.md").read_text(encoding="utf-8")
    more = ["--partitions", "0.10x_train"]
    assert main([str(a) for a in (*arguments, *more)]) == 1
    assert "has no partitions" in capsys.readouterr().err


def test_modalities_are_the_catalogues():
    rgb = next(m for m in DATASETS2["benv2"].modalities if m.name == "rgb")
    assert rgb.band_names == catalog.modality("rgb").band_names
