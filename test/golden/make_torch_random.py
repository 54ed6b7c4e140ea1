"""Numbers of PyTorch's CPU generator as PEFT draws them, for lib/adapters/torch_random.ts: torch_random.json.

Each entry: the key, the shape, and every `step`-th number (as float32 or bfloat16 widened) of the last tensor drawn.

Run: python make_torch_random.py
"""

import math
from pathlib import Path

import torch

from make_tiny_llama import versions, write_json

HERE = Path(__file__).parent


def main() -> None:
    entries = []
    for key in (0, 42, 1234567, 2**40 + 17):
        generator = torch.Generator(device="cpu").manual_seed(key)
        for dtype in (torch.float32, torch.bfloat16):
            values = torch.empty(50, 40, dtype=dtype).uniform_(-0.3, 0.7, generator=generator)
            entries.append(entry(key, "uniform", values))
            values = torch.nn.init.kaiming_uniform_(torch.empty(8, 1, 33, dtype=dtype), a=math.sqrt(5),
                                                    generator=generator)
            entries.append(entry(key, "kaiming", values))
    write_json(HERE / "torch_random.json", {"versions": versions(), "step": 7, "entries": entries})


def entry(key: int, kind: str, values: torch.Tensor) -> dict:
    dtype = "bf16" if values.dtype == torch.bfloat16 else "f32"
    return {"key": key, "kind": kind, "dtype": dtype, "shape": list(values.shape),
            "values": values.flatten()[::7].float().tolist()}


if __name__ == "__main__":
    main()
