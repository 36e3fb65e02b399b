"""An encoder for other inputs: fewer, more or other bands, keeping what pre-training learnt.

A band takes its patch-projection weights from the pre-trained band of the same name or the nearest
wavelength; others get new weights. Where weights are a function of wavelength, every optical band
has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from multimae_eo.errors import ConfigError, ContractError
from multimae_eo.modality import Band, Modality, ModalitySet
from multimae_eo.network.config import InputConfig
from multimae_eo.network.embedding import ClassEmbedding, PatchEmbedding, SpectralEmbedding
from multimae_eo.network.missing_bands import bands_agree
from multimae_eo.network.multimae import MultiMAE
from multimae_eo.network.patch_resampling import resampled_weight
from multimae_eo.statistics import Statistics

NEAR = 0.05
"""Centre wavelengths that differ by less, relatively, are of the same band."""

Donor = tuple[str, int]
"""A pre-trained modality's name and the index of one of its bands."""


@dataclass(frozen=True)
class Adapted:
    """An encoder, and what was not simply taken over, in words."""

    encoder: MultiMAE
    notes: tuple[str, ...]


def adapt(
    model: MultiMAE,
    inputs: ModalitySet,
    sizes: Mapping[str, int],
    measured: Callable[[ModalitySet], Statistics],
    *,
    decoders: bool = False,
    patch: int | None = None,
) -> Adapted:
    """The encoder of ``model`` for ``inputs``: weights copied where they fit.

    ``decoders``: keep those of the inputs that mean the same in model and data; else none is kept.
    ``patch``: another side of the patches of the finest input, in its pixels; those of the others
    change by the same factor, and all projections are resampled.

    ``sizes``: side of a chip per input in its own pixels. ``measured``: statistics of the data for
    the inputs that the model does not know, or that mean something else in the data; the others
    keep those of pre-training.

    Raises ContractError where patches do not divide an input's share of a chip, ConfigError where
    ``patch`` is no whole number of pixels of every input, or decoders would have to change with it.
    """
    reused = [n for n, modality in inputs.items() if model.modalities.has(modality)]
    if model.statistics is None:
        reused = []
    unknown = [n for n in inputs if n not in reused]
    fresh = measured(inputs.select(unknown)) if unknown else None
    sets: dict[str, Modality] = {
        n: model.modalities[n] if n in reused else inputs[n] for n in inputs
    }
    modalities = ModalitySet(sets.values())
    donors = {n: _donors(modality, model.modalities) for n, modality in modalities.items()}
    configs = {n: _input(model, modalities[n], donors[n], sizes) for n in modalities}
    factor = Fraction(1) if patch is None else _patch_factor(configs, patch)
    if factor != 1 and decoders:
        raise ConfigError("decoders.keep: decoders predict patches of one size; leave patch out")
    configs = {n: replace(c, patch=int(c.patch * factor)) for n, c in configs.items()}
    config = replace(model.config, inputs=configs)
    statistics = _joined(modalities, reused, model.statistics, fresh)
    tasks = [t for t in model.tasks if decoders and t.modality in reused]
    encoder = MultiMAE(modalities, tasks, config, statistics)
    # A decoder's vectors of modalities that are no inputs are left out, those of new ones are new.
    state = {
        k: v
        for k, v in model.state_dict().items()
        if k.startswith(("encoder.", "decoders.")) or k == "global_tokens"
    }
    encoder.load_state_dict(state, strict=False)
    _copy_spectral(model, encoder, factor)
    notes = []
    for name, modality in modalities.items():
        notes += _copy(model, encoder, modality, donors[name], factor)
    return Adapted(encoder, tuple(notes))


def _donors(modality: Modality, pretrained: ModalitySet) -> list[Donor | None]:
    """For each band the pre-trained band whose weights it takes."""
    same = next((m for m in pretrained.values() if m.name == modality.name), None)
    if modality.categorical:
        fits = same is not None and same.categorical
        return [(modality.name, 0) if fits else None]
    donors: list[Donor | None] = []
    for band in modality.bands:
        named = None
        if same is not None and not same.categorical and same.sensor == modality.sensor:
            named = next((i for i, b in enumerate(same.bands) if _same(b, band)), None)
        donors.append(
            _nearest(band, modality, pretrained) if named is None else (modality.name, named)
        )
    return donors


def _same(a: Band, b: Band) -> bool:
    """Whether bands of one sensor are the same: by name, unless wavelengths contradict it."""
    return a.name == b.name and (b.wavelength_offset(a) or 0.0) <= NEAR


def _nearest(band: Band, modality: Modality, pretrained: ModalitySet) -> Donor | None:
    """The pre-trained band of the same unit and nearest wavelength; its own modality's first."""
    ranked = [
        (offset, theirs.name != modality.name, (theirs.name, i))
        for theirs in pretrained.values()
        if not theirs.categorical and theirs.unit == modality.unit
        for i, other in enumerate(theirs.bands)
        if (offset := band.wavelength_offset(other)) is not None
    ]
    best = min(ranked, default=None)
    return best[2] if best is not None and best[0] < NEAR else None


def _input(
    model: MultiMAE, modality: Modality, donors: list[Donor | None], sizes: Mapping[str, int]
) -> InputConfig:
    """Patch and stride of the same modality, or of the finest donor's; else the same ground as
    others'."""
    name, inputs = modality.name, model.config.inputs
    if name in inputs:
        config: InputConfig | None = inputs[name]
    else:
        origins = [inputs[d[0]] for d in donors if d is not None]
        config = max(origins, key=lambda c: c.size, default=None)
    if config is None:
        beside = next((n for n in sizes if n in inputs), None)
        if beside is None:
            config = max(inputs.values(), key=lambda c: c.size)
        else:
            patch = inputs[beside].token_pixels * sizes[name] / sizes[beside]
            if patch != int(patch) or patch < 1:
                raise ContractError(
                    f"{name}: {sizes[name]} px beside {sizes[beside]} px of {beside}: no whole "
                    f"patch covers the ground of its {inputs[beside].token_pixels} px; "
                    "resample it"
                )
            config = InputConfig(size=sizes[name], patch=int(patch))
    stride = config.stride if modality.categorical else 1
    return replace(config, size=sizes[name], stride=stride)


def _patch_factor(configs: Mapping[str, InputConfig], patch: int) -> Fraction:
    """By which the patches of all inputs change; ConfigError unless they stay whole pixels."""
    finest = max(configs, key=lambda name: configs[name].size)
    side = configs[finest].token_pixels
    least = math.lcm(*(side // math.gcd(side, c.patch) for c in configs.values()))
    if patch < 1 or patch % least:
        raise ConfigError(
            f"patch: {patch} px of {finest}, which has patches of {side} px in the model, are not "
            f"whole pixels of all inputs; choose a multiple of {least}"
        )
    return Fraction(patch, side)


def _joined(
    modalities: ModalitySet,
    reused: list[str],
    kept: Statistics | None,
    fresh: Statistics | None,
) -> Statistics:
    parts = [kept.select(reused)] if kept is not None and reused else []
    parts += [fresh] if fresh is not None else []
    return Statistics(
        modalities,
        {n: levels for p in parts for n, levels in p.moments.items()},
        {n: counts for p in parts for n, counts in p.class_counts.items()},
    )


@torch.no_grad()
def _copy(
    old: MultiMAE,
    new: MultiMAE,
    modality: Modality,
    donors: list[Donor | None],
    factor: Fraction,
) -> list[str]:
    """Copy a modality's embedding band by band; what was not simply taken over, in words.

    ``factor``: by which the sides of all patches changed.
    """
    name, embedding = modality.name, new.embeddings[modality.name]
    chosen = [d for d in donors if d is not None]
    if chosen and name in new.modality:
        most = max((d[0] for d in chosen), key=[d[0] for d in chosen].count)
        new.modality[name].copy_(old.modality[most])
    if isinstance(embedding, ClassEmbedding):
        return _copy_classes(old, new, modality, bool(chosen))
    if isinstance(embedding, SpectralEmbedding):
        pixels = new.config.inputs[name].patch
        if str(pixels / factor) in old.spectral:
            return []
        return [f"{name}: new weights (patches of {pixels} px)"]
    assert isinstance(embedding, PatchEmbedding)
    origins = sorted({d[0] for d in chosen})
    side = new.config.inputs[name].patch
    fits = [o for o in origins if isinstance(old.embeddings[o], PatchEmbedding)]
    weight, taken = _by_band(embedding, modality.channels), []
    biases: list[Tensor] = []
    for i, donor in enumerate(donors):
        if donor is None or donor[0] not in fits:
            continue
        theirs = old.embeddings[donor[0]]
        assert isinstance(theirs, PatchEmbedding)
        # A token of several modalities' bands is as large as theirs: the mean of what they gave.
        # So is one of several bands with the same donor: each has a share of its weights.
        source = _by_band(theirs, old.modalities[donor[0]].channels)
        missing = _missing(old.modalities[donor[0]], donors)
        shared = source[:, missing].sum(dim=1) / len(_given(donors, donor[0]))
        given = (source[:, donor[1]] + shared) / donors.count(donor)
        weight[:, i] = resampled_weight(given, side) / len(fits)
        taken.append(i)
    for origin in fits:
        theirs = old.embeddings[origin]
        assert isinstance(theirs, PatchEmbedding)
        biases.append(theirs.projection.bias)
    if biases:
        embedding.projection.bias.copy_(torch.stack(biases).mean(dim=0))
    lost = {o: _missing(old.modalities[o], donors) for o in fits}
    if origins == [name] and len(taken) == modality.channels and not lost[name]:
        return []
    origin_notes = [
        f"{b.name} from {donors[i][0]}.{old.modalities[donors[i][0]].bands[donors[i][1]].name}"  # type: ignore[index]
        if i in taken
        else f"{b.name} new"
        for i, b in enumerate(modality.bands)
    ]
    absent = [old.modalities[o].bands[i].name for o, missing in lost.items() for i in missing]
    more = f"; {', '.join(absent)} missing: weights shared by the others" if absent else ""
    return [f"{name}: weights of bands: {', '.join(origin_notes)}{more}"]


def _given(donors: Sequence[Donor | None], origin: str) -> set[int]:
    """Which bands of a pre-trained modality give weights."""
    return {d[1] for d in donors if d is not None and d[0] == origin}


def _missing(modality: Modality, donors: Sequence[Donor | None]) -> list[int]:
    """Bands of a pre-trained modality that the inputs lack, and that count as the mean of the
    others (``missing_bands``): the weights of the others then take on theirs."""
    if not bands_agree(modality):
        return []
    given = _given(donors, modality.name)
    return [i for i in range(modality.channels) if i not in given]


def _by_band(embedding: PatchEmbedding, channels: int) -> Tensor:
    """A view of the projection's weight: (D, C, p·p)."""
    weight = embedding.projection.weight
    return weight.view(len(weight), channels, -1)


def _copy_classes(old: MultiMAE, new: MultiMAE, modality: Modality, reused: bool) -> list[str]:
    """Copy a class map's embedding: vectors by class id, and the projection."""
    name = modality.name
    mine = new.embeddings[name]
    assert isinstance(mine, ClassEmbedding)
    if not reused:
        return [f"{name}: new weights"]
    theirs = old.embeddings[name]
    assert isinstance(theirs, ClassEmbedding)
    ids = old.modalities[name].class_ids
    lost = [c.name for c in modality.classes if c.id not in ids]
    for i, class_id in enumerate(modality.class_ids):
        if class_id in ids:
            mine.classes[i].copy_(theirs.classes[ids.index(class_id)])
    by_element = theirs.projection.weight.unflatten(1, (theirs.classes.shape[1], -1))
    weight = resampled_weight(by_element, new.config.inputs[name].patch)
    mine.projection.weight.copy_(weight.flatten(1))
    mine.projection.bias.copy_(theirs.projection.bias)
    return [f"{name}: new weights of classes {', '.join(lost)}"] if lost else []


@torch.no_grad()
def _copy_spectral(old: MultiMAE, new: MultiMAE, factor: Fraction) -> None:
    """Copy the functions of wavelength; the sides of all patches changed by ``factor``."""
    for side, mine in new.spectral.items():
        before = str(int(side) / factor)
        if before not in old.spectral:
            continue
        state = old.spectral[before].state_dict()
        for name in ("second.weight", "second.bias"):
            # (p² · D, …): a weight for each pixel and each element of the vector.
            by_pixel = state[name].unflatten(0, (-1, new.config.encoder.width))
            state[name] = resampled_weight(by_pixel.movedim(0, -1), int(side)).movedim(-1, 0)
            state[name] = state[name].flatten(0, 1)
        mine.load_state_dict(state)
