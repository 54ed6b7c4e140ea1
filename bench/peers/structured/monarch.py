"""Monarch products as the reference code computes them (HazyResearch/fly, blockdiag_butterfly_multiply)."""
import torch


def multiply(x, w1, w2):
    batch, (k, q, p), (l, s, r) = x.shape[0], w1.shape, w2.shape
    middle = torch.bmm(x.reshape(batch, k, p).transpose(0, 1), w1.transpose(-1, -2))
    middle = middle.transpose(0, 1).reshape(batch, r, l).transpose(-1, -2).contiguous().transpose(0, 1)
    return torch.bmm(middle, w2.transpose(-1, -2)).permute(1, 2, 0).reshape(batch, s * l)


def product(rows, w1, w2):
    def prepare():
        x, a, b = torch.randn(rows, w1[0] * w1[2]), torch.randn(w1), torch.randn(w2)
        return lambda: multiply(x, a, b)

    return prepare


def training(rows, w1, w2):
    def prepare():
        own = [torch.randn(shape, requires_grad=True) for shape in ((rows, w1[0] * w1[2]), w1, w2)]
        g = torch.randn(rows, w2[0] * w2[1])

        def run():
            with torch.enable_grad():
                torch.autograd.grad(multiply(*own), own, g)

        return run

    return prepare


SIZES = {
    "4096x1024-n32": (4096, (32, 32, 32), (32, 32, 32)),
    "1024x4096-n64": (1024, (64, 64, 64), (64, 64, 64)),
    "2048x768-3072-n4": (2048, (4, 768, 192), (4, 768, 768)),
}
CASES = {f"monarch-{name}": product(*sizes) for name, sizes in SIZES.items()}
CASES |= {f"monarch-{name}-train": training(*sizes) for name, sizes in SIZES.items()}
