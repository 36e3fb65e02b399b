"""What names several scenes, and what these are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from multimae_eo.errors import ConfigError
from multimae_eo.sources.scene.scene_list import list_pairs, list_scenes, names_several

SCENE = "modalities: {rgb: {path: a.tif, sensor: sentinel2}}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("set/b.yaml", "set/a.yml", "set/.hidden.yaml", "2021/s2.tif", "2022/s2.tif"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(SCENE)
    Path("set/chips.yaml").write_text("chips: '{id}.tif'\nmodalities: {rgb: {sensor: s}}\n")
    Path("set/notes.yaml").write_text("just text")
    Path("set/broken.yaml").write_text("modalities: [")
    Path("set/readme.md").write_text("")
    product = Path("set/S2A_MSIL2A_20210527.SAFE")
    product.mkdir()
    (product / "MTD_MSIL2A.xml").write_text("<a/>")
    return tmp_path


def test_a_folder_lists_scene_files_and_products(folder):
    names = [s.name for s in list_scenes("set")]
    assert names == ["S2A_MSIL2A_20210527", "a", "b", "broken"], "opening it reports the damage"
    assert [str(s.spec) for s in list_scenes("set/S2A_MSIL2A_20210527.SAFE")] == [
        "set/S2A_MSIL2A_20210527.SAFE"
    ]
    assert [str(s.spec) for s in list_scenes("2021")] == ["2021"], "a folder of rasters is a scene"


def test_lists_patterns_and_text_files(folder):
    Path("list.txt").write_text("# scenes\nset/b.yaml\n\n2021/s2.tif\nhttps://host/c.tif?key=1\n")
    names = [s.name for s in list_scenes("list.txt")]
    assert names == ["b", "s2", "c"]
    assert [s.name for s in list_scenes(["set/[ab].yaml", Path("2021/s2.tif")])] == ["a", "b", "s2"]
    scenes = list_scenes("set/b.yaml, 2021/s2.tif,set/b.yaml")
    assert [s.name for s in scenes] == ["b", "s2"], "named twice, it counts once"
    with pytest.raises(ConfigError, match="no file matches '2021/x"):
        list_scenes("2021/x*.tif")
    with pytest.raises(ConfigError, match="lists no scene"):
        list_scenes([])


def test_names_are_of_as_many_folders_as_tell_them_apart(folder):
    assert [s.name for s in list_scenes("202?/s2.tif")] == ["2021_s2", "2022_s2"]
    names = [s.name for s in list_scenes(["c.zarr::red+nir@2021-05-27", "c.zarr@2022-05-30"])]
    assert names == ["c_red+nir@2021-05-27", "c@2022-05-30"]
    for scene in list_scenes(["a b.tif", "../..%.tif"]):
        assert scene.name
        assert not set("/\\ :*?") & set(scene.name)
    with pytest.raises(ConfigError, match="two scenes are called 'x_a'"):
        list_scenes(["x a.tif", "x_a.tif"])


def test_what_is_one_scene_stays_one(folder):
    for single in ("set", "2021/s2.tif", "none.yaml", "https://host/a,b.tif", "set/a.yml"):
        assert not names_several(single), single
    Path("list.txt").write_text("")
    Path("items.json").write_text("{}")
    Path("stac.yaml").write_text("area: [0, 0, 1, 1]\n")
    for several in ("a.tif,b.tif", "2021/*.tif", "list.txt", "items.json", "stac.yaml", ["a.tif"]):
        assert names_several(several), several
    Path("a,b.tif").write_text("")
    assert not names_several("a,b.tif"), "a file of this name"


def test_pairs_are_by_name_else_in_order(folder):
    pairs = list_pairs("x/a.tif,x/b.tif", "y/b.tif,y/a.tif")
    assert [(p.name, str(p.spec[1])) for p in pairs] == [("a", "y/a.tif"), ("b", "y/b.tif")]
    pairs = list_pairs("x/a.tif,x/b.tif", "y/c.tif,y/d.tif")
    assert [p.name for p in pairs] == ["a_c", "b_d"]
    with pytest.raises(ConfigError, match=r"2 scenes before and 1 after .* counterpart: b"):
        list_pairs("x/a.tif,x/b.tif", "y/a.tif")


def test_documents_that_are_no_list(folder):
    Path("a.json").write_text('{"type": "Feature"}')
    with pytest.raises(ConfigError, match="is no STAC ItemCollection"):
        list_scenes("a.json")
    Path("a.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as a STAC ItemCollection"):
        list_scenes("a.json")
    with pytest.raises(ConfigError, match=r"none\.txt"):
        list_scenes("none.txt")
