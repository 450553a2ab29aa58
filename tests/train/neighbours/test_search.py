"""The search in blocks finds what the whole matrix of cosines says."""

import numpy as np
import pytest
import torch

from lmk_train.neighbours.search import nearest, unit_vectors


@pytest.mark.parametrize(("number", "block_rows"), [(1, 7), (5, 7), (5, 1000), (50, 7), (101, 20)])
def test_the_nearest_are_those_of_the_whole_matrix(number: int, block_rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    index = unit_vectors(torch.randn(101, 16, generator=generator)).half().numpy()
    index[40:50] = index[:10]  # duplicates: the first one comes first
    queries = unit_vectors(torch.randn(9, 16, generator=generator))
    queries[0] = torch.from_numpy(index[45]).float()
    cosines, rows = nearest(index, queries, number, block_rows)
    every = queries.double().numpy() @ index.T.astype(np.float64)
    order = np.argsort(-every.round(12), axis=1, kind="stable")[:, :number]
    np.testing.assert_allclose(cosines.numpy(), np.take_along_axis(every, order, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(every, rows.numpy(), axis=1), cosines.numpy(), atol=1e-6)
    assert rows[0, 0] in (5, 45)
    assert all(len(set(row)) == number for row in rows.tolist())


def test_unit_vectors_have_length_one_and_zeros_stay() -> None:
    lengths = unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-20, 0.0]])).norm(dim=1)
    assert lengths[:2].tolist() == [1.0, 0.0]
