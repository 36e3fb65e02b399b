"""Cutting into patches and putting back, positions, and slots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multimae_eo.errors import ContractError
from multimae_eo.network.embedding import PositionTable, sincos_table
from multimae_eo.network.tokens import TokenLayout, patchify, unpatchify


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)
)
def test_unpatchify_inverts_patchify(batch, channels, rows, cols, patch):
    image = torch.randn(batch, channels, rows * patch, cols * patch)
    patches = patchify(image, patch)
    assert patches.shape == (batch, rows * cols, channels * patch * patch)
    assert torch.equal(unpatchify(patches, (rows, cols), patch), image)


def test_a_patch_is_laid_out_channel_row_column():
    image = torch.arange(2 * 4 * 4).reshape(1, 2, 4, 4)
    second = patchify(image, 2)[0, 1].reshape(2, 2, 2)
    assert torch.equal(second, image[0, :, 0:2, 2:4])


def test_patchify_refuses_a_remainder():
    with pytest.raises(ContractError, match="5×4"):
        patchify(torch.zeros(1, 1, 5, 4), 2)


def test_layout_slices_cover_all_tokens_in_order():
    layout = TokenLayout({"a": (2, 3), "b": (1, 1), "c": (2, 2)})
    assert layout.slices == {"a": slice(0, 6), "b": slice(6, 7), "c": slice(7, 11)}
    assert layout.count == 11
    assert layout.modality_of.tolist() == [0] * 6 + [1] + [2] * 4
    assert layout.columns(["b", "c"]).tolist() == [False] * 6 + [True] * 5


def test_positions_are_the_sines_and_cosines_of_row_and_column():
    table = sincos_table(8, 5)[0]
    row, col = 3, 2
    for i, frequency in enumerate((1.0, 10000**-0.5)):
        expected = (row * frequency, col * frequency)
        got = table[[i, i + 2, i + 4, i + 6], row, col].double()
        angles = torch.tensor(expected, dtype=torch.float64)
        want = torch.stack([angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()])
        assert torch.allclose(got, want, atol=1e-6)


def test_positions_of_any_grid_and_aspect_are_computed_once():
    table = PositionTable(16, 28)
    whole = table((28, 28), "bicubic")
    assert torch.equal(whole, sincos_table(16, 28).flatten(2)[0].T)
    assert table((7, 9), "bilinear").shape == (63, 16)
    assert table((7, 9), "bilinear") is table((7, 9), "bilinear")
    assert not table.state_dict(), "positions are computed, never saved"
