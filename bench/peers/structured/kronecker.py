"""Products with Kronecker products by reshapes and matmuls; sums of them as Compacter's code does, written out."""
import torch


def chain(rows, sizes):
    def prepare():
        factors = [torch.randn(size) for size in sizes]
        x = torch.randn(rows, *[size[1] for size in sizes])

        def run():
            y = x @ factors[-1].T
            for axis in range(len(sizes) - 1, 0, -1):
                y = torch.einsum("mn,bn...->bm...", factors[axis - 1], y) if axis == 1 else torch.einsum(
                    "mn,bcn...->bcm...", factors[axis - 1], y)
            return y.reshape(rows, -1)

        return run

    return prepare


def two(rows, size_a, size_b):
    def prepare():
        a, b = torch.randn(size_a), torch.randn(size_b)
        x = torch.randn(rows, size_a[1], size_b[1])
        return lambda: (a @ (x @ b.T)).reshape(rows, -1)

    return prepare


def hypercomplex(rows, a, b):
    def prepare():
        left, right = torch.randn(a), torch.randn(b)
        x = torch.randn(rows, a[2] * b[2])

        def run():
            weight = torch.einsum("tij,tkl->ikjl", left, right).reshape(a[1] * b[1], a[2] * b[2])
            return x @ weight.T

        return run

    return prepare


CASES = {
    "kronecker-4096-32x32": two(4096, (32, 32), (32, 32)),
    "kronecker-1024-64x64": two(1024, (64, 64), (64, 64)),
    "kronecker-2048-16x16x16": chain(2048, [(16, 16)] * 3),
    "kronecker-2048-phm4-768-3072": hypercomplex(2048, (4, 4, 4), (4, 768, 192)),
}
