"""Labels on the wrong band, by what physics expects of each band of an optical or radar sensor.

Five criteria, each insensitive to some swaps: neighbours in wavelength look most alike; bands of
coarse native resolution are smooth; the cirrus band is dark, for water vapour hides the ground; the
two short-wave infrared bands resemble each other; leaves are bright in the near infrared. Radar's
crossed polarisations are fainter.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from multimae_eo.doctor.bands import Stack
from multimae_eo.doctor.finding import Finding, percent
from multimae_eo.doctor.scan import Array
from multimae_eo.plausible import is_cirrus

_CHAIN_UM = 0.93
_SWIR1_UM, _SWIR2_UM, _NIR_UM = (1.5, 1.8), (2.0, 2.4), (0.8, 0.9)
_LEAST_CHIPS, _MANY_CHIPS = 3, 30
_LIMIT, _LIMIT_FEW = 0.05, 0.15
"""Drop of the disorder at which a better order is believed, with many chips and with few. On
EuroSAT, unlabelled L2A and HLS chips every swap that this criterion detects drops it by more."""
_SHARP = 1.4
_REMEDY = (
    "check the band order of the files and declare it (`file_bands:` or `channels:`); some data "
    "sets store B8A last, or label bands wrongly"
)
_FAINTER = (("VH", "VV"), ("HV", "HH"), ("VH_desc", "VV_desc"), ("HV_desc", "HH_desc"))


def order_findings(stacks: list[Stack]) -> Iterator[Finding]:
    """Suspicions about which band is which."""
    for stack in stacks:
        if stack.chips < _LEAST_CHIPS:
            continue
        yield from _neighbours(stack)
        yield from _leaves(stack)
        yield from _resolutions(stack)
        yield from _cirrus(stack)
        yield from _short_wave(stack)
        yield from _polarisation(stack)


def _suspicion(where: str, what: str, evidence: dict[str, object]) -> Finding:
    return Finding(
        check="band-order",
        severity="warning",
        where=where,
        what=what,
        evidence=evidence,
        remedy=_REMEDY,
    )


def _within(stack: Stack, low: float, high: float) -> list[int]:
    """Bands between two wavelengths that vary, from short to long."""
    waves = [(b.wavelength_um or 0.0, i) for i, b in enumerate(stack.bands)]
    seen: set[float] = set()
    chosen = []
    for wave, i in sorted(waves):
        if low <= wave <= high and stack.varied[i] and wave not in seen:
            seen.add(wave)
            chosen.append(i)
    return chosen


def disorder(distance: Array, order: list[int]) -> float:
    """How badly bands in this order resemble their neighbours; 0 when the nearer is always closer.

    distance: (C, C), larger for bands that differ more. For every three bands in order, the outer
    two must differ at least as much as either from the middle one.
    """
    excess = [
        max(0.0, distance[order[a], order[b]] - distance[order[a], order[c]])
        + max(0.0, distance[order[b], order[c]] - distance[order[a], order[c]])
        for a, b, c in combinations(range(len(order)), 3)
    ]
    return float(np.mean(excess)) if excess else 0.0


def _orders(count: int) -> set[tuple[int, ...]]:
    """Orders in which two bands are swapped, or one is moved."""
    results: set[tuple[int, ...]] = set()
    for i in range(count):
        for j in range(count):
            order = list(range(count))
            order.insert(j, order.pop(i))
            results.add(tuple(order))
            order = list(range(count))
            order[i], order[j] = order[j], order[i]
            results.add(tuple(order))
    return results


def _moved(order: tuple[int, ...]) -> int:
    return sum(abs(k - b) for k, b in enumerate(order))


def _neighbours(stack: Stack) -> Iterator[Finding]:
    chain = _within(stack, 0.3, _CHAIN_UM)
    if len(chain) < 4:
        return
    distance = np.log(np.clip(1.0 - stack.correlation(chain), 1e-4, None))
    now = disorder(distance, list(range(len(chain))))
    trials = {o: disorder(distance, list(o)) for o in _orders(len(chain))}
    # An order and its mirror image are equally tidy: the one that moves least is believed.
    best = min(trials, key=lambda o: (round(trials[o], 2), _moved(o)))
    limit = _LIMIT if stack.chips >= _MANY_CHIPS else _LIMIT_FEW
    if now - trials[best] < limit or trials[best] > 0.6 * now:
        return
    names = [stack.bands[i].name for i in chain]
    moved = [f"{names[b]} looks like {names[k]}" for k, b in enumerate(best) if b != k]
    yield _suspicion(
        ", ".join(stack.where(chain[b]) for k, b in enumerate(best) if b != k),
        "neighbouring wavelengths do not look alike in the declared order",
        {
            "disorder": round(now, 3),
            "reordered": round(trials[best], 3),
            "reading": "; ".join(moved),
        },
    )


def _leaves(stack: Stack) -> Iterator[Finding]:
    """Blue brighter than the near infrared: only water is so, and water is dark."""
    blue, nir = _within(stack, 0.4, 0.52), _within(stack, *_NIR_UM)
    if not blue or not nir:
        return
    short, long = np.concatenate(stack.blocks, axis=1)[[blue[-1], nir[0]]]
    observed = np.isfinite(short) & np.isfinite(long)
    if not observed.any():
        return
    short, long = short[observed], long[observed]
    odd = float(((short > 1.5 * long) & (short > 0.15)).mean())
    leaves = float((long > 1.5 * short).mean())
    if odd > max(leaves, 0.1):
        yield _suspicion(
            f"{stack.where(blue[-1])}, {stack.where(nir[0])}",
            "blue is brighter than the near infrared over land: the order looks reversed",
            {"blue far brighter": percent(odd), "near infrared far brighter": percent(leaves)},
        )


def _resolutions(stack: Stack) -> Iterator[Finding]:
    """Bands as sharp as those of finer native resolution, or as smooth as coarser ones."""
    native = [b.gsd_m for b in stack.bands]
    comparable = [
        i
        for i, gsd in enumerate(native)
        if gsd and stack.varied[i] and not is_cirrus(stack.bands[i].wavelength_um)
    ]
    if not comparable:
        return
    finest = min(native[i] or np.inf for i in comparable)
    coarse = {i for i in comparable if (native[i] or 0.0) >= 1.9 * finest}
    if not coarse or len(coarse) == len(comparable):
        return
    sharp = np.log(np.maximum(stack.sharpness, 1e-3))
    order = sorted(comparable, key=lambda i: sharp[i])
    gaps = np.diff(sharp[order])
    # Without a gap the bands were all averaged to one coarse grid, or all are native.
    if gaps.max() < np.log(_SHARP):
        return
    smooth = set(order[: int(gaps.argmax()) + 1])
    wrong = sorted(smooth ^ coarse)
    if not wrong or len(wrong) > len(comparable) // 2:
        return
    for i in wrong:
        kind = "smooth like a coarser band" if i in smooth else "sharp like a finer band"
        yield _suspicion(
            stack.where(i),
            f"{kind}; its native resolution is {native[i]:g} m",
            {
                "sharpness": round(float(stack.sharpness[i]), 3),
                "coarse bands": round(float(np.median(stack.sharpness[sorted(smooth)])), 3),
                "fine bands": round(
                    float(np.median(stack.sharpness[sorted(set(comparable) - smooth)])), 3
                ),
            },
        )


def _cirrus(stack: Stack) -> Iterator[Finding]:
    medians = stack.medians
    for i, band in enumerate(stack.bands):
        if not is_cirrus(band.wavelength_um) or not stack.varied[i]:
            continue
        others = [j for j in range(len(stack.bands)) if j != i and stack.varied[j]]
        darker = [j for j in others if medians[j] < medians[i]]
        if darker:
            yield _suspicion(
                stack.where(i),
                "the cirrus band sees the ground: others are darker",
                {
                    "median": float(medians[i]),
                    "darkest": stack.where(min(others, key=lambda j: medians[j])),
                    "its median": float(min(medians[others])),
                },
            )


def _short_wave(stack: Stack) -> Iterator[Finding]:
    one, two = _within(stack, *_SWIR1_UM), _within(stack, *_SWIR2_UM)
    nir, red = _within(stack, *_NIR_UM), _within(stack, 0.63, 0.69)
    if not one or not two or not nir:
        return
    names = [one[0], two[0], nir[0], *red[:1]]
    r = stack.correlation(names)
    for i, other in ((0, 1), (1, 0)):
        if 1.0 - r[i, 2] < 0.8 * (1.0 - r[i, other]):
            yield _suspicion(
                stack.where(names[i]),
                "resembles the near infrared more than its short-wave neighbour",
                {
                    f"with {stack.bands[names[2]].name}": round(float(r[i, 2]), 3),
                    f"with {stack.bands[names[other]].name}": round(float(r[i, other]), 3),
                },
            )
            return
    # Moisture darkens both, but the longer one follows red light and the shorter one the leaves.
    if red and r[1, 2] > r[0, 2] + 0.05 and r[0, 3] > r[1, 3] + 0.05 and stack.chips >= _MANY_CHIPS:
        yield _suspicion(
            f"{stack.where(names[0])}, {stack.where(names[1])}",
            "the two short-wave infrared bands look swapped",
            {
                "near infrared with each": [round(float(r[k, 2]), 3) for k in (0, 1)],
                "red with each": [round(float(r[k, 3]), 3) for k in (0, 1)],
            },
        )


def _polarisation(stack: Stack) -> Iterator[Finding]:
    index = {b.name: i for i, b in enumerate(stack.bands)}
    medians = stack.medians
    for cross, like in _FAINTER:
        if cross not in index or like not in index:
            continue
        a, b = medians[index[cross]], medians[index[like]]
        if a > b:
            yield _suspicion(
                f"{stack.where(index[cross])}, {stack.where(index[like])}",
                f"{cross} is brighter than {like}: the polarisations look swapped",
                {cross: float(a), like: float(b)},
            )
