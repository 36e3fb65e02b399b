"""Few examples: the same answer as scikit-learn and as Laplace's approximation in full."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from multimae_eo.demo.few_shot import few_shot, few_shot_classes


@pytest.fixture
def case():
    rng = np.random.default_rng(3)
    shift = rng.normal(size=12)
    a, b = rng.normal(size=(7, 12)) + shift, rng.normal(size=(5, 12)) - shift
    return np.r_[a, b], np.array([True] * 7 + [False] * 5), rng.normal(size=(200, 12))


def by_hand(examples, labels, everywhere, *, prior):
    """In the space of weights: scikit-learn's optimum, and the inverse of the whole Hessian."""
    scale = 1 / np.sqrt(examples.shape[1])
    X = np.c_[examples * scale, np.ones(len(examples))]
    Z = np.c_[everywhere * scale, np.ones(len(everywhere))]
    fit = LogisticRegression(C=1 / prior, fit_intercept=False, tol=1e-10, max_iter=10000)
    w = fit.fit(X, labels).coef_[0]
    p = 1 / (1 + np.exp(-X @ w))
    hessian = X.T @ (X * (p * (1 - p))[:, None]) + prior * np.eye(X.shape[1])
    variance = np.einsum("nd,de,ne->n", Z, np.linalg.inv(hessian), Z)
    return 1 / (1 + np.exp(-(Z @ w) / np.sqrt(1 + np.pi * variance / 8)))


@pytest.mark.parametrize("ridge", [0.3, 1.0, 10.0])
def test_equals_the_full_laplace_approximation(case, ridge):
    output = few_shot(*case, ridge=ridge)
    assert np.abs(output.probability - by_hand(*case, prior=0.1 * ridge)).max() < 1e-4


def test_entropy_is_that_of_the_probability_in_bits(case):
    output = few_shot(*case)
    p = output.probability
    assert np.allclose(output.entropy, -(p * np.log2(p) + (1 - p) * np.log2(1 - p)))
    assert output.entropy.max() <= 1 + 1e-12


def test_swapping_the_sets_swaps_the_answer(case):
    examples, labels, everywhere = case
    one, other = few_shot(examples, labels, everywhere), few_shot(examples, ~labels, everywhere)
    assert np.allclose(one.probability, 1 - other.probability, atol=1e-6)


def test_it_is_unsure_far_from_its_examples():
    """On the axis that the examples say nothing about, distance brings doubt."""
    examples = np.array([[2.0, 0.0], [-2.0, 0.0]])
    line = np.c_[np.full(5, 2.0), np.array([0.0, 3.0, 10.0, 30.0, 100.0])]
    output = few_shot(examples, np.array([True, False]), line)
    assert (np.diff(output.entropy) > 0).all()
    assert output.entropy[-1] > 0.99


def test_two_classes_are_two_sets(case):
    examples, labels, everywhere = case
    both = few_shot(examples, labels, everywhere)
    classes = few_shot_classes(examples, np.where(labels, 0, 1), 2, everywhere)
    assert np.allclose(classes.probability[:, 0], both.probability)
    assert np.allclose(classes.entropy, both.entropy)


def test_more_classes_are_told_apart_in_any_order():
    rng = np.random.default_rng(0)
    middles = 3 * np.eye(4)[:3]
    labels = np.repeat([0, 1, 2], 5)
    examples = middles[labels] + rng.normal(size=(15, 4)) * 0.3
    where = np.repeat([0, 1, 2], 40)
    everywhere = middles[where] + rng.normal(size=(120, 4)) * 0.3
    fitted = few_shot_classes(examples, labels, 3, everywhere)
    assert np.allclose(fitted.probability.sum(axis=1), 1)
    assert (fitted.probability.argmax(axis=1) == where).all()
    turned = few_shot_classes(examples, (labels + 1) % 3, 3, everywhere)
    assert np.allclose(np.roll(turned.probability, -1, axis=1), fitted.probability, atol=1e-9)
    assert fitted.entropy.max() <= np.log2(3)


def test_rows_are_predicted_alike_in_parts(case, monkeypatch):
    whole = few_shot(*case)
    monkeypatch.setattr("multimae_eo.demo.few_shot._ROWS", 7)
    assert np.allclose(few_shot(*case).probability, whole.probability, atol=1e-12)
