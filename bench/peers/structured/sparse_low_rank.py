"""x (B A + S)^T of 1024 rows, [2048, 2048], rank 128, 3 % dense, split as torch can."""
import torch

ROWS, SIZE, RANK, DENSITY = 1024, 2048, 128, 0.03


def operands():
    torch.manual_seed(1)
    kept = torch.randperm(SIZE * SIZE)[: int(DENSITY * SIZE * SIZE)]
    s = torch.zeros(SIZE * SIZE)
    s[kept] = 0.02 * torch.randn(len(kept))
    s = s.view(SIZE, SIZE)
    a, b = 0.02 * torch.randn(RANK, SIZE), 0.02 * torch.randn(SIZE, RANK)
    x, g = 0.02 * torch.randn(ROWS, SIZE), 0.02 * torch.randn(ROWS, SIZE)
    return s.to_sparse_csr(), s.t().contiguous().to_sparse_csr(), a, b, x, g


def sparse():
    s, _, _, _, x, _ = operands()
    return lambda: (s @ x.t()).t().contiguous()


def forward():
    s, _, a, b, x, _ = operands()
    return lambda: (x @ a.t()) @ b.t() + (s @ x.t()).t()


def step():
    """The gradients written out: torch's autograd of a CSR tensor makes the dense d loss / d S."""
    s, st, a, b, x, g = operands()
    rows = torch.repeat_interleave(torch.arange(SIZE), s.crow_indices().diff())
    columns = s.col_indices()

    def run():
        z = x @ a.t()
        y = z @ b.t() + (s @ x.t()).t()
        gb = g @ b
        dx = gb @ a + (st @ g.t()).t()
        da, db = gb.t() @ x, g.t() @ z
        dv = (g.t() @ x)[rows, columns]
        return y, dx, da, db, dv

    return run


CASES = {
    "sparse-1024x2048x2048-3%": sparse,
    "sparse+low-rank-r128-3%": forward,
    "sparse+low-rank-r128-3%-step": step,
}
