"""A convolution (512, 512, 3, 3) with a Tucker core of 64 on 4 images of 28 x 28, and HOSVD of a kernel."""
import torch
import torch.nn.functional as F


def operands():
    torch.manual_seed(1)
    shapes = [(64, 64, 3, 3), (512, 64, 1, 1), (64, 512, 1, 1), (4, 512, 28, 28), (4, 512, 28, 28)]
    return [0.05 * torch.randn(*shape) for shape in shapes]


def conv(core, out, down, x):
    return F.conv2d(F.conv2d(F.conv2d(x, down), core, padding=1), out)


def forward():
    core, out, down, x, _ = operands()

    def run():
        with torch.no_grad():
            return conv(core, out, down, x)

    return run


def step():
    core, out, down, x, g = operands()
    leaves = [leaf.requires_grad_() for leaf in (x, core, out, down)]

    def run():
        with torch.enable_grad():
            return torch.autograd.grad(conv(core, out, down, x), leaves, g)

    return run


def hosvd():
    torch.manual_seed(1)
    x = 0.05 * torch.randn(128, 128, 3, 3)

    def run():
        u0 = torch.linalg.svd(x.reshape(128, -1), full_matrices=False)[0][:, :32]
        y = torch.tensordot(u0.t(), x, dims=1)
        u1 = torch.linalg.svd(y.transpose(0, 1).reshape(128, -1), full_matrices=False)[0][:, :32]
        return u0, u1, torch.einsum("abhw,bj->ajhw", y, u1)

    return run


CASES = {
    "tucker-conv-512x512x3x3-r64": forward,
    "tucker-conv-512x512x3x3-r64-step": step,
    "hosvd-128x128x3x3-r32": hosvd,
}
