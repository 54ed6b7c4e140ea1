"""Golden values of test/105-sparse.test.ts and test/106-tucker.test.ts: `python make_structured.py > structured.json`.

numpy in f64, from the definitions: a sparse matrix is walked through entry by entry as CSR and as CSC; mode products are
sums over an index; HOSVD (plain and sequentially truncated) and HOOI as in De Lathauwer et al. 2000 and Vannieuwenhoven
et al. 2012. Factors are given as projectors A Aᵀ, which do not depend on the signs of singular vectors.
"""
import json

import numpy as np

rng = np.random.default_rng(11)


def matrix(*shape):
    return np.round(rng.standard_normal(shape), 3)


def numbers(x):
    return np.asarray(x, dtype=np.float64).ravel().tolist()


def compressed(dense):
    """Pointers, indices and values of the rows of a matrix."""
    pointers, indices, values = [0], [], []
    for row in dense:
        for column, value in enumerate(row):
            if value != 0:
                indices.append(column)
                values.append(value)
        pointers.append(len(indices))
    return pointers, indices, values


def sparse():
    dense = matrix(7, 9) * (rng.random((7, 9)) < 0.3)
    dense[2] = 0
    dense[:, 4] = 0
    pointers, indices, values = compressed(dense)
    column_pointers, row_indices, by_column = compressed(dense.T)
    x, g, rows = matrix(9, 5), matrix(7, 5), matrix(4, 9)
    product, turned = np.zeros((7, 5)), np.zeros((9, 5))
    sampled, right = [], np.zeros((4, 7))
    for row in range(7):
        for t in range(pointers[row], pointers[row + 1]):
            product[row] += values[t] * x[indices[t]]
            right[:, row] += values[t] * rows[:, indices[t]]
            sampled.append(g[row] @ x[indices[t]])
    for column in range(9):
        for t in range(column_pointers[column], column_pointers[column + 1]):
            turned[column] += by_column[t] * g[row_indices[t]]
    return {
        "shape": [7, 9],
        "rowPointers": pointers,
        "columnIndices": indices,
        "values": values,
        "columnPointers": column_pointers,
        "rowIndices": row_indices,
        "x": numbers(x),
        "g": numbers(g),
        "rows": numbers(rows),
        "spmm": numbers(product),
        "spmmTransposed": numbers(turned),
        "spmmRight": numbers(right),
        "sddmm": numbers(sampled),
    }


def mode_product(x, a, axis):
    return np.moveaxis(np.einsum("ji,i...->j...", a, np.moveaxis(x, axis, 0)), 0, axis)


def leading(x, axis, rank):
    return np.linalg.svd(np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1), full_matrices=False)[0][:, :rank]


def contracted(x, factors, besides=None):
    for axis, a in enumerate(factors):
        if axis != besides:
            x = mode_product(x, a.T, axis)
    return x


def described(x, factors):
    core = contracted(x, factors)
    back = core
    for axis, a in enumerate(factors):
        back = mode_product(back, a, axis)
    return {
        "projectors": [numbers(a @ a.T) for a in factors],
        "coreNorms": [
            numbers(np.linalg.norm(np.moveaxis(core, axis, 0).reshape(core.shape[axis], -1), axis=1))
            for axis in range(core.ndim)
        ],
        "relativeError": float(np.linalg.norm(x - back) / np.linalg.norm(x)),
    }


def tucker():
    ranks = (3, 2, 4)
    x = matrix(6, 5, 7)
    # A signal of that rank, so that its directions are far apart.
    for axis, rank in enumerate(ranks):
        x = mode_product(x, np.diag(np.r_[np.ones(rank), 0.1 * np.ones(x.shape[axis] - rank)]), axis)
    x = np.round(x, 5)
    plain = [leading(x, axis, rank) for axis, rank in enumerate(ranks)]
    sequential, rest = [], x
    for axis, rank in enumerate(ranks):
        sequential.append(leading(rest, axis, rank))
        rest = mode_product(rest, sequential[-1].T, axis)
    best = list(plain)
    for _ in range(200):
        for axis, rank in enumerate(ranks):
            best[axis] = leading(contracted(x, best, axis), axis, rank)
    a = matrix(4, 5)
    return {
        "shape": list(x.shape),
        "ranks": list(ranks),
        "x": numbers(x),
        "a": numbers(a),
        "modeProduct": numbers(mode_product(x, a, 1)),
        "hosvd": described(x, plain),
        "sequential": described(x, sequential),
        "hooi": described(x, best),
    }


print(json.dumps({"sparse": sparse(), "tucker": tucker()}))
