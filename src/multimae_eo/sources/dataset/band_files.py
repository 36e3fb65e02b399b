"""A modality of chips with a file per band: the files become one raster, bands in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from multimae_eo.errors import BandError, FormatError
from multimae_eo.modality import Modality
from multimae_eo.sources.band_match import BandRule, locate_bands
from multimae_eo.sources.raster.header import RasterHeader
from multimae_eo.sources.raster.reading import Raster


def stacked_header(
    headers: Sequence[RasterHeader], modality: Modality, names: Sequence[str]
) -> RasterHeader:
    """The header of single-band files as one file. ``names``: of their bands, as declared.

    BandError for a file of several bands, or of another band by its name; FormatError where sizes
    or dtypes differ.
    """
    first = headers[0]
    for header, band, name in zip(headers, modality.bands, names, strict=True):
        if header.count != 1:
            raise BandError(
                f"{header.path}: {modality.name}: has {header.count} bands; a band's file has one: "
                "name it in `path:`, with `file_bands:`"
            )
        locate_bands(header, replace(modality, bands=(band,)), BandRule(band_names=(name,)))
        if header.shape != first.shape or header.dtype != first.dtype:
            sizes = [f"{h.shape[0]}×{h.shape[1]} px, {h.dtype}" for h in (header, first)]
            raise FormatError(
                f"{header.path}: {modality.name}: {sizes[0]}, but {sizes[1]} in {first.path}; give "
                "bands of another resolution or dtype a modality of their own"
            )
    bands = tuple(replace(h.bands[0], name=n) for h, n in zip(headers, names, strict=True))
    return replace(first, bands=bands, alpha=None)


def stacked(rasters: Sequence[Raster], modality: Modality, names: Sequence[str]) -> Raster:
    """The rasters of a chip's bands as one: pixels (C, H, W); arguments and errors as above."""
    header = stacked_header([r.header for r in rasters], modality, names)
    mask = None
    if any(r.mask is not None for r in rasters):
        clear = np.ones((1, *header.shape), dtype=bool)
        mask = np.concatenate([clear if r.mask is None else r.mask[:1] for r in rasters])
    return Raster(header=header, pixels=np.concatenate([r.pixels for r in rasters]), mask=mask)
