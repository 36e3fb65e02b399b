"""Every subcommand's outputs against its inputs: an output that is, contains or overwrites an
input exits 1 in one line before anything is loaded, and leaves every byte as it was.

The options are those of the subcommands' own dataclasses: a new option that takes text is in one
of the three lists here, or the first test fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from multimae_eo.cli.main import SUBCOMMANDS, main
from multimae_eo.cli.parser import recipe_options
from multimae_eo.sources.input_paths import INPUT_OPTIONS, OUTPUT_OPTIONS
from tests.support.marks import mostly_slow

NO_PATHS = {
    "allow_host", "at", "calibrate", "cluster", "column", "crs", "dask", "datasets", "dates",
    "days", "device", "drop", "expected", "features", "fractions", "grid",
    "head", "host", "inputs", "key", "layer", "level", "levels", "methods", "outputs",
    "partitions", "paths", "split",
}  # fmt: skip
"""Options of text that name no file, or none that the output may not lie beside (init)."""
NO_PATHS |= {"mirror", "name"}  # of fetch
READ_AS_SOURCE = ("source", "data", "scene")
"""Inputs that may be a YAML file, whose own files are inputs as well."""


def text_options(name: str) -> dict[str, Any]:
    """The fields of a subcommand that take text, by name; those of recipes are apart."""
    hints = get_type_hints(SUBCOMMANDS[name])
    fields = {}
    for field in dataclasses.fields(SUBCOMMANDS[name]):
        kinds = set(parts(hints[field.name]))
        if kinds & {str, Path} and not field.metadata.get("recipe"):
            fields[field.name] = field
    return fields


def parts(hint: Any) -> Iterator[Any]:
    """A type and those within it: ``tuple[str, ...] | None`` holds ``str``."""
    yield hint
    if get_origin(hint) is not Literal:
        for inner in get_args(hint):
            yield from parts(inner)


PAIRS = [
    (name, written, read)
    for name in SUBCOMMANDS
    for written in text_options(name)
    for read in text_options(name)
    if written in OUTPUT_OPTIONS and read in INPUT_OPTIONS
]


FIRST = [
    next(p for p in PAIRS if p[0] == name) for name in dict.fromkeys(name for name, _, _ in PAIRS)
]


def test_every_option_is_an_input_an_output_or_no_path() -> None:
    known = {"input": set(INPUT_OPTIONS), "output": set(OUTPUT_OPTIONS), "neither": NO_PATHS}
    names = {option for name in SUBCOMMANDS for option in text_options(name)}
    for option in sorted(names):
        kinds = [kind for kind, options in known.items() if option in options]
        assert len(kinds) == 1, f"--{option}: say in one of the lists what it is; it is in {kinds}"
    assert set().union(*known.values()) == names, "an option is listed that no subcommand has"


def test_no_option_of_a_recipe_names_a_file() -> None:
    """What a recipe overrides is text or numbers; an option that names a file must be checked."""
    for kind in SUBCOMMANDS.values():
        for field in dataclasses.fields(kind):
            recipe = field.metadata.get("recipe")
            for option in recipe_options(recipe.load()) if recipe else ():
                last = option.path.split(".")[-1]
                assert option.path in recipe.excluded or last not in {
                    *INPUT_OPTIONS,
                    *OUTPUT_OPTIONS,
                }


def test_the_walk_covers_every_subcommand_that_writes() -> None:
    writing = {n for n in SUBCOMMANDS if {*text_options(n)} & {*OUTPUT_OPTIONS}}
    # quickstart reads nothing: it makes its own data. init writes beside what it reads, and never
    # over a file that exists. fetch reads nothing of the user's.
    assert {name for name, _, _ in PAIRS} == writing - {"quickstart", "init", "fetch"}


def command(name: str, given: dict[str, Path | str], spare: Path) -> list[str]:
    """A command line with the given options, and some value for every other required one."""
    hints = get_type_hints(SUBCOMMANDS[name])
    line = [name]
    for field in dataclasses.fields(SUBCOMMANDS[name]):
        required = field.default is field.default_factory is dataclasses.MISSING
        if field.name in given:
            value = str(given[field.name])
        elif not required or field.metadata.get("recipe"):
            continue
        elif get_origin(hints[field.name]) is Literal:
            value = str(get_args(hints[field.name])[0])
        elif field.name in (*INPUT_OPTIONS, *OUTPUT_OPTIONS):
            value = str(spare / field.name)
        else:
            value = "rgb"
        line += [value] if field.metadata.get("positional") else [f"--{field.name}", value]
    return line


def write_inputs(folder: Path) -> dict[str, Path]:
    """A file, a folder and a data set file with its chips, tiny and of no real format."""
    made = folder / "made"
    for path in ("alone/input.pth", "model/config.json", "model/weights", "set/chips/a.tif"):
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_bytes(path.encode())
    (made / "set/set.yaml").write_text(
        'root: chips\nchips: "{id}.tif"\nmodalities:\n  rgb: {sensor: sentinel2, level: l2a}\n'
    )
    (made / "set/scene.yaml").write_text("modalities:\n  rgb: {path: chips/a.tif}\n")
    return {"file": made / "alone/input.pth", "folder": made / "model", "set": made / "set"}


def refused_pairs(made: dict[str, Path], links: Path, read: str) -> Iterator[tuple[str, Path]]:
    """(input, output) that touch each other: the same, linked, containing, inside."""
    links.mkdir()
    ways = [(made["file"], made["file"].parent), (made["folder"], made["folder"].parent)]
    for number, (given, above) in enumerate(ways):
        link, other = links / f"link{number}", links / f"above{number}"
        link.symlink_to(given)
        other.symlink_to(above)
        for output in (given, link, above, other, above.parent, above / "." / given.name):
            yield str(given), output
        yield str(link), given
        yield str(link), link
    hard = links / "hard"
    hard.hardlink_to(made["file"])
    yield str(made["file"]), hard
    yield str(made["folder"]), made["folder"] / "weights"
    if read not in READ_AS_SOURCE:
        return
    chip = made["set"] / "chips/a.tif"
    linked = links / "chip.tif"
    linked.symlink_to(chip)
    for file in ("set.yaml", "scene.yaml"):
        given = made["set"] / file
        for output in (given, made["set"], chip, chip.parent, linked):
            yield str(given), output
        yield f"{made['file']},{given}", linked
    yield f"scene:{made['set'] / 'scene.yaml'}", chip
    yield f"mmearth:{made['folder']}", made["folder"]


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder with its bytes, or where it leads."""
    return {
        str(p): str(p.readlink()) if p.is_symlink() else p.read_bytes() if p.is_file() else ""
        for p in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("pair", mostly_slow(PAIRS, fast=FIRST), ids="-".join)
def test_an_output_that_touches_an_input_is_refused(
    pair: tuple[str, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, written, read = pair
    made = write_inputs(tmp_path)
    pairs = list(refused_pairs(made, tmp_path / "links", read))
    before = contents(tmp_path)
    for given, output in pairs:
        line = command(name, {read: given, written: output}, tmp_path / "spare")
        assert main(line) == 1, line
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"multimae-eo: error: --{written} {output}"), line
        assert err.count("\n") == 1
        assert f"an input ({read}: " in err
        assert contents(tmp_path) == before, line
