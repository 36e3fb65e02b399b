"""Facts about a single file: a raster, embeddings, an exported graph, or a dataset file."""

from __future__ import annotations

from pathlib import Path

from multimae_eo.errors import ConfigError, FormatError
from multimae_eo.export.files import read_record
from multimae_eo.files import reading, require_regular
from multimae_eo.loading.open_source import open_source
from multimae_eo.sources.raster.reading import open_dataset

RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg")
YAML = (".yaml", ".yml")
GRAPHS = (".onnx", ".pt2")


def describe_file(path: Path) -> dict[str, object]:
    """Facts about a file, ready for JSON, by its ending.

    Raises ConfigError for a kind of file that is not known, FormatError for a damaged one.
    """
    kind = path.suffix.lower()
    if kind in RASTERS:
        return _raster(path)
    if kind == ".parquet":
        return _embeddings(path)
    if kind in GRAPHS:
        return {"is": "exported graph", "bytes": path.stat().st_size, **read_record(path)}
    if kind in YAML:
        return _yaml(path)
    raise ConfigError(
        f"{path}: info knows rasters ({', '.join(RASTERS)}), embeddings (.parquet), exported "
        f"graphs ({', '.join(GRAPHS)}), dataset and scene files (.yaml), and folders"
    )


def _raster(path: Path) -> dict[str, object]:
    try:
        import rasterio
    except ImportError as error:
        raise ConfigError(f"{path}: rasters need pip install 'multimae-eo[geo]'") from error
    require_regular(path, FormatError)
    try:
        with open_dataset(path) as file:
            tags = {k.lower(): v for k, v in file.tags().items() if not k.startswith("AREA_OR")}
            return {
                "what": "raster",
                "driver": file.driver,
                "size": f"{file.width} × {file.height} px, {file.count} bands, {file.dtypes[0]}",
                "bands": [d for d in file.descriptions if d],
                "crs": None if file.crs is None else file.crs.to_string(),
                "pixel": f"{abs(file.transform.a):g} × {abs(file.transform.e):g}",
                "bounds": [round(v, 6) for v in file.bounds],
                "nodata": file.nodata,
                "layout": tags.pop("layout", file.tags(ns="IMAGE_STRUCTURE").get("LAYOUT", "")),
                **tags,
            }
    except rasterio.errors.RasterioError as error:
        raise FormatError(f"{path}: not a readable raster: {error}") from error


def _embeddings(path: Path) -> dict[str, object]:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    require_regular(path, FormatError)
    with reading(path, FormatError, form="Parquet"):
        file = pq.ParquetFile(path)
        fields = file.schema_arrow
        record: dict[str, object] = {
            "what": "GeoParquet" if b"geo" in (fields.metadata or {}) else "Parquet",
            "rows": file.metadata.num_rows,
            "columns": fields.names,
        }
        if "model_hash" in fields.names:
            hashes = pc.unique(file.read(columns=["model_hash"])["model_hash"]).to_pylist()
            record["model_hash"] = hashes[0] if len(hashes) == 1 else hashes
        if "vector" in fields.names:
            record["vector"] = str(fields.field("vector").type)
    return record


def _yaml(path: Path) -> dict[str, object]:
    source = open_source(path)
    return {
        "what": "dataset or scene file",
        "name": source.name,
        "chips": len(source),
        "splits": {s: sum(1 for x in source.split_of if x == s) for s in source.splits},
        "modalities": {n: ", ".join(m.band_names) for n, m in source.modalities.items()},
        "classes": list(source.class_names),
    }
