"""GGUF blocks, random and extreme, with the values that the `gguf` package decodes from them; floats with their Q8_0,
F16 and BF16 forms as it encodes them. Run with /opt/peer/bin/python: writes gguf_blocks.safetensors."""

import warnings
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

warnings.filterwarnings("ignore")
random = np.random.default_rng(29)

# Where the f16 scales stand in a block.
scales = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
}
# Zeros of both signs, the smallest subnormal, the largest number, infinities, a NaN, one.
extremes = np.array([0x0000, 0x8000, 0x0001, 0x7BFF, 0x7C00, 0xFC00, 0x7E01, 0x3C00], dtype=np.uint16)

tensors = {}
for name, places in scales.items():
    elements, size = GGML_QUANT_SIZES[Type[name]]
    count = 12 if elements == 256 else 24
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for row, block in enumerate(blocks):
        for place in places:
            plain = np.float16(random.uniform(-2, 2)).view(np.uint16)
            bits = extremes[(row + place) % 8] if row < 8 else plain
            block[place : place + 2] = np.array([bits], dtype=np.uint16).view(np.uint8)
    blocks[8, [i for i in range(size) if not any(p <= i < p + 2 for p in places)]] = 0xFF
    blocks[9, [i for i in range(size) if not any(p <= i < p + 2 for p in places)]] = 0x00
    tensors[f"{name.lower()}.blocks"] = blocks
    tensors[f"{name.lower()}.values"] = dequantize(blocks, Type[name]).reshape(count, elements)

floats = random.normal(0, 1, (24, 32)).astype(np.float32)
floats[0] = 0
floats[1] *= 1e-30
floats[2] *= 3e4
floats[3] = np.arange(32) * 0.5  # ties
floats[4, :8] = [127, 63.5, -63.5, 0.5, -0.5, 1.5, 2.5, -1.5]
floats[4, 8:] = 0
floats[5] = -0.0
floats[6] *= 1e-7  # subnormal halves
tensors["floats"] = floats
for name in ["Q8_0", "F16", "BF16"]:
    encoded = quantize(floats, Type[name])
    tensors[f"floats.{name.lower()}"] = np.ascontiguousarray(encoded).view(np.uint8).reshape(24, -1)

save_file(tensors, Path(__file__).parent / "gguf_blocks.safetensors")
