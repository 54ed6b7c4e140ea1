"""Factorisations."""
import torch


def case(shape, run):
    def prepare():
        a = torch.randn(*shape)
        return lambda: run(a)

    return prepare


def svd(a):
    return torch.linalg.svd(a, full_matrices=False)


CASES = {
    "svd-1024x32x32": case((1024, 32, 32), svd),
    "svd-256x64x64": case((256, 64, 64), svd),
    "svd-4096x8x8": case((4096, 8, 8), svd),
    "svd-64x128x128": case((64, 128, 128), svd),
    "qr-1024x32x32": case((1024, 32, 32), torch.linalg.qr),
    "qr-64x128x128": case((64, 128, 128), torch.linalg.qr),
    "qr-4096x128": case((4096, 128), torch.linalg.qr),
    "eigh-64x128x128": case((64, 128, 128), torch.linalg.eigh),
    "eigh-1024x32x32": case((1024, 32, 32), torch.linalg.eigh),
    "svd-2048x2048": case((2048, 2048), svd),
    "svd-lowrank-4096x4096-r128": case((4096, 4096), lambda a: torch.svd_lowrank(a, q=128, niter=2)),
}
