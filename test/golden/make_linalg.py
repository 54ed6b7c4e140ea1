"""Golden values of tests 15 to 17: `python make_linalg.py > linalg.json`.

numpy and scipy for factorisations; assignments by trying all permutations; incremental components by the formulas of
scikit-learn's IncrementalPCA.partial_fit, written out in f64.
"""
import itertools
import json

import numpy as np
import scipy.linalg

rng = np.random.default_rng(7)


def matrix(*shape):
    return np.round(rng.standard_normal(shape), 3)


def numbers(x):
    return np.asarray(x, dtype=np.float64).ravel().tolist()


a = matrix(2, 5, 3)
square = matrix(4, 4)
b = matrix(4, 2)
deficient = matrix(5, 2) @ matrix(2, 4)
target = matrix(5)
cost = matrix(5, 7)
best = min(
    itertools.permutations(range(7), 5),
    key=lambda columns: sum(cost[i, j] for i, j in enumerate(columns)),
)


def incremental(batches, k):
    seen, mean, var, s, vh = 0, 0.0, 0.0, None, None
    for x in batches:
        n = len(x)
        total = seen + n
        batch_mean = x.mean(0)
        new_mean = (seen * mean + n * batch_mean) / total
        scatter = var * seen + ((x - batch_mean) ** 2).sum(0) + (seen * n / total) * (mean - batch_mean) ** 2
        if seen == 0:
            stack = x - new_mean
        else:
            correction = np.sqrt((seen / total) * n) * (mean - batch_mean)
            stack = np.vstack((s[:, None] * vh, x - batch_mean, correction))
        _, s, vh = np.linalg.svd(stack, full_matrices=False)
        signs = np.sign(vh[np.arange(len(vh)), np.abs(vh).argmax(1)])
        s, vh = s[:k], (vh * signs[:, None])[:k]
        seen, mean, var = total, new_mean, scatter / total
    return {"s": numbers(s), "vh": numbers(vh), "mean": numbers(mean), "ratio": numbers(s**2 / (var * seen).sum())}


# These two by formulas that the test repeats.
i, j = np.arange(1200)[:, None], np.arange(3)
long = np.sin(7 * i + 2 * j**3 + j)
batch = np.cos(np.arange(7 * 12 * 9.0) ** 2).reshape(7, 12, 9)

rows = matrix(23, 6) + np.arange(6) * 0.5
pivoted = matrix(5, 3)
print(
    json.dumps(
        {
            "svd": {"a": numbers(a), "s": numbers(np.linalg.svd(a)[1])},
            "solve": {"a": numbers(square), "b": numbers(b), "x": numbers(np.linalg.solve(square, b))},
            "eigh": {"a": numbers(square + square.T), "w": numbers(np.linalg.eigvalsh(square + square.T))},
            "pinv": {"a": numbers(deficient), "x": numbers(np.linalg.pinv(deficient, 1e-10))},
            "lstsq": {"b": numbers(target), "x": numbers(np.linalg.lstsq(deficient, target, rcond=1e-10)[0])},
            "qr": {"a": numbers(a[0]), "r": numbers(np.linalg.qr(a[0])[1])},
            "long_qr": {"r": numbers(np.linalg.qr(long)[1])},
            "batch": {"r": numbers(np.linalg.qr(batch)[1]), "s": numbers(np.linalg.svd(batch)[1])},
            "lu": {"a": numbers(square), "u": numbers(scipy.linalg.lu(square)[2])},
            "cholesky": {
                "a": numbers(square @ square.T),
                "l": numbers(scipy.linalg.cholesky(square @ square.T, lower=True)),
            },
            "pivoted": {
                "a": numbers(pivoted),
                "r": numbers(scipy.linalg.qr(pivoted, mode="economic", pivoting=True)[1]),
                "pivots": scipy.linalg.qr(pivoted, mode="economic", pivoting=True)[2].tolist(),
            },
            "assignment": {"cost": numbers(cost), "columns": list(best)},
            "incremental": {"rows": numbers(rows), **incremental([rows[:8], rows[8:12], rows[12:]], 3)},
        }
    )
)
