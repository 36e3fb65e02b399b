"""TorchGeo data sets as a source, by their sample dictionaries; nothing is copied.

Any sequence of dictionaries of tensors will do: TorchGeo itself is not imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from multimae_eo.errors import BandError, ConfigError, FormatError, did_you_mean
from multimae_eo.modality import Modality, ModalitySet
from multimae_eo.sample import Calibration, Pixels, Sample, Validity
from multimae_eo.sources.base import Source


class SampleDataset(Protocol):
    """What a (non-geo) data set of TorchGeo offers."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, index: int, /) -> Mapping[str, object]:
        """A sample: tensors by key."""


@dataclass(frozen=True, kw_only=True)
class ImageKey:
    """Where a modality is in a sample: channels of the tensor under ``key``.

    ``channels``: 0-based, one per band of the modality (None: the tensor has just these).
    ``calibration``: from the tensor's numbers to the modality's unit, and the product level.
    """

    modality: Modality
    key: str = "image"
    channels: tuple[int, ...] | None = None
    calibration: Calibration = field(default_factory=Calibration)


class TorchGeoSource(Source):
    """Data sets by split, as one source. Keys are ``split/index``.

    Args:
        name: for messages.
        datasets: TorchGeo data sets by split (``train``, ``val``, ``test``).
        images: the modalities.
        label: key of the label: a class, a multi-hot vector, or a mask (None: no labels).
        class_names: of class labels.
        ignore: ids of a mask that count as no label.
    """

    def __init__(
        self,
        name: str,
        datasets: Mapping[str, SampleDataset],
        images: Sequence[ImageKey],
        *,
        label: str | None = None,
        class_names: Sequence[str] = (),
        ignore: Sequence[int] = (),
    ) -> None:
        if not datasets or not images:
            raise ConfigError(f"{name}: needs a data set and an image")
        for image in images:
            if image.channels is not None and len(image.channels) != image.modality.channels:
                raise BandError(
                    f"{name}: {image.modality.name} has the bands "
                    f"{', '.join(image.modality.band_names)}; got channels {image.channels}"
                )
            image.modality.level_index(image.calibration.level)
        self.name, self.datasets, self.label = name, dict(datasets), label
        self.images = {i.modality.name: i for i in images}
        self.modalities = ModalitySet(i.modality for i in images)
        self.class_names, self.ignore = tuple(class_names), tuple(ignore)
        self._where = [(s, i) for s, d in datasets.items() for i in range(len(d))]
        self.keys = [f"{s}/{i}" for s, i in self._where]
        self.split_of = [s for s, _ in self._where]

    @classmethod
    def from_datamodule(
        cls,
        name: str,
        module: object,
        images: Sequence[ImageKey],
        *,
        label: str | None = None,
        class_names: Sequence[str] = (),
    ) -> TorchGeoSource:
        """A set-up DataModule's ``train_dataset``, ``val_dataset`` and ``test_dataset``."""
        by_split = {s: getattr(module, f"{s}_dataset", None) for s in ("train", "val", "test")}
        datasets = {s: d for s, d in by_split.items() if d is not None}
        if not datasets:
            raise ConfigError(f"{name}: the DataModule has no data sets; call its setup() first")
        return cls(name, datasets, images, label=label, class_names=class_names)

    def read(self, index: int, names: Sequence[str] | None = None) -> Sample:
        """Read one sample; values that are not finite, or nodata, are invalid."""
        split, at = self._where[index]
        record = self.datasets[split][at]
        pixels: dict[str, Pixels] = {}
        valid: dict[str, Validity] = {}
        for name, image in self.images.items():
            if names is None or name in names:
                planes = self._planes(record, image, self.keys[index])
                ok = np.isfinite(planes) & ~np.isin(planes, image.modality.nodata)
                pixels[name] = np.where(ok, planes, 0).astype(planes.dtype)
                if not ok.all():
                    valid[name] = ok
        return Sample(
            key=self.keys[index],
            pixels=pixels,
            valid=valid,
            calibration={n: self.images[n].calibration for n in pixels},
            label=None if self.label is None else self._label(record, self.keys[index]),
        )

    def _planes(self, record: Mapping[str, object], image: ImageKey, key: str) -> Pixels:
        planes = np.asarray(self._get(record, image.key, key))
        if planes.ndim == 2:
            planes = planes[None]
        channels = image.channels
        needed = image.modality.channels if channels is None else max(channels) + 1
        exact = channels is None and planes.ndim == 3 and len(planes) != needed
        if planes.ndim != 3 or len(planes) < needed or exact:
            raise FormatError(
                f"{self.name}: {key}: {image.key!r} is {planes.shape}; {image.modality.name} needs "
                f"(C, H, W) with {needed} channels ({', '.join(image.modality.band_names)}); "
                "name them with `channels`"
            )
        return planes if channels is None else planes[list(channels)]

    def _label(self, record: Mapping[str, object], key: str) -> object:
        label = np.asarray(self._get(record, self.label or "", key))
        if label.ndim == 3 and len(label) == 1:
            label = label[0]
        if label.ndim == 0:
            return label.item()
        if label.ndim == 2:
            return np.where(np.isin(label, self.ignore), -1, label.astype(np.int64))
        return label

    def _get(self, record: Mapping[str, object], name: str, key: str) -> object:
        if name not in record:
            raise FormatError(
                f"{self.name}: {key}: no {name!r} in the sample; {did_you_mean(name, record)}"
            )
        return record[name]
