"""Makes operators-<family>.json and .safetensors: what torch computes for every case of Heddle's operators.

A case is {op, options, shapes, seed[, ints]}; its inputs are drawn here and in test/support/golden_operators.ts by the
same generator, so that only results (y) and gradients (d0, d1, …, under a drawn cotangent) are stored.

Run: OMP_NUM_THREADS=1 /opt/peer/bin/python make_operators.py [family …]
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = Path(__file__).parent


def random_numbers(count: int, seed: int) -> np.ndarray:
    """mulberry32, as test/random_numbers.ts."""
    mask = 0xFFFFFFFF
    state = (seed * 0x9E3779B9) & mask
    out = np.empty(count, np.float32)
    for i in range(count):
        state = (state + 0x6D2B79F5) & mask
        word = ((state ^ (state >> 15)) * (state | 1)) & mask
        word ^= (word + (((word ^ (word >> 7)) * (word | 61)) & mask)) & mask
        out[i] = (word ^ (word >> 14)) / 2**31 - 1
    return out


def activations():
    table = {
        "gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
        "quickGelu": lambda x: x * torch.sigmoid(1.702 * x),
        "softplus": F.softplus,
        "logSigmoid": F.logsigmoid,
        "leakyRelu": lambda x, slope=0.01: F.leaky_relu(x, slope),
        "elu": lambda x, alpha=1.0: F.elu(x, alpha),
        "clamp": lambda x, low, high: torch.clamp(x, low, high),
        "mish": F.mish,
        "softcap": lambda x, cap: cap * torch.tanh(x / cap),
    }
    options = {"gelu": [{}, {"approximate": "tanh"}], "leakyRelu": [{}, {"slope": 0.2}], "elu": [{}, {"alpha": 0.5}]}
    options |= {"clamp": [{"low": -0.5, "high": 2}], "softcap": [{"cap": 3}]}
    cases = [case(op, [[61]], each, scale=8) for op in table for each in options.get(op, [{}])]
    return cases, table


def norms():
    table = {
        "layerNorm": lambda x, *p, eps=1e-5, bias=True: F.layer_norm(
            x, x.shape[-1:], *(p if bias or not p else [p[0]]), eps=eps
        ),
        "softmax": lambda x, axis=-1: torch.softmax(x, axis),
        "logSoftmax": lambda x, axis=-1: torch.log_softmax(x, axis),
        "logSumExp": lambda x, axis=-1: torch.logsumexp(x, axis),
    }
    cases = [case("layerNorm", [[3, width], [width], [width]], {"eps": eps}) for width in (1, 5, 16, 67) for eps in (1e-5, 0.1)]
    cases += [case("layerNorm", [[2, 3, 19]], {}), case("layerNorm", [[4, 33], [33]], {}, scale=5)]
    for op in ("softmax", "logSoftmax", "logSumExp"):
        cases += [case(op, [[3, width]], {}, scale=6) for width in (1, 3, 16, 70)]
        cases += [case(op, [[3, 5, 4]], {"axis": axis}, scale=3) for axis in (0, 1, -2)]
    return cases, table


def conv2d_torch(x, w, *bias, **options):
    return F.conv2d(x, w, *bias, **options)


def convolutions():
    table = {"conv2d": conv2d_torch, "conv1d": lambda x, w, *bias, **options: F.conv1d(x, w, *bias, **options)}
    cases = []
    for n, c, o, size, k, options in (
        (1, 1, 1, (1, 1), (1, 1), {}),
        (2, 3, 5, (6, 7), (3, 3), {}),
        (2, 3, 5, (6, 7), (3, 3), {"padding": 1}),
        (1, 17, 18, (5, 4), (3, 3), {"padding": "same"}),
        (1, 2, 3, (5, 4), (2, 4), {"padding": "same"}),
        (3, 4, 16, (7, 7), (3, 3), {"stride": 2, "padding": 1}),
        (1, 4, 4, (9, 8), (3, 2), {"stride": [3, 2], "padding": [2, 1]}),
        (1, 4, 6, (9, 9), (3, 3), {"dilation": 2, "padding": "valid"}),
        (1, 4, 4, (9, 9), (3, 3), {"dilation": [1, 3], "padding": 3, "stride": 2}),
        (2, 6, 4, (5, 5), (3, 3), {"groups": 2, "padding": 1}),
        (2, 32, 32, (6, 6), (3, 3), {"groups": 2, "padding": 1}),
        (2, 20, 20, (5, 5), (3, 3), {"groups": 20, "padding": 1}),
        (1, 6, 12, (5, 5), (3, 3), {"groups": 6}),
        (1, 3, 8, (8, 8), (4, 4), {"stride": 4}),
        (2, 19, 33, (3, 4), (1, 1), {}),
        (1, 5, 4, (6, 6), (1, 1), {"stride": 2}),
        (18, 2, 3, (4, 4), (3, 3), {}),
    ):
        shapes = [[n, c, *size], [o, c // options.get("groups", 1), *k]]
        cases.append(case("conv2d", shapes, options))
    cases.append(case("conv2d", [[2, 3, 5, 5], [4, 3, 3, 3], [4]], {"padding": 1}))
    cases.append(case("conv2d", [[1, 3, 5, 5], [20, 3, 1, 1], [20]], {}))
    for options in ({}, {"padding": 3, "groups": 6}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}):
        cases.append(case("conv1d", [[2, 6, 11], [6, 6 // options.get("groups", 1), 4], [6]], options))
    return cases, table


FAMILIES = {f.__name__: f for f in (activations, norms, convolutions)}


def case(op, shapes, options, **more):
    return {"op": op, "shapes": shapes, "options": options, **more}


def compute(spec, function, index):
    """Fills in the seed, and gives y and the gradients of Σ cotangent · y."""
    spec["seed"] = 100 * index + 1
    inputs = []
    for i, shape in enumerate(spec["shapes"]):
        values = random_numbers(int(np.prod(shape)), spec["seed"] + i) * spec.get("scale", 1)
        inputs.append(torch.from_numpy(values.reshape(shape)).double().requires_grad_())
    ints = [torch.tensor(each) for each in spec.get("ints", [])]
    y = function(*inputs, *ints, **spec["options"])
    cotangent = torch.from_numpy(random_numbers(y.numel(), 7)).double().reshape(y.shape)
    (y * cotangent).sum().backward()
    found = {"y": y.detach()} | {f"d{i}": x.grad for i, x in enumerate(inputs)}
    return {key: value.float().contiguous() for key, value in found.items()}


def main(names) -> None:
    torch.set_num_threads(1)
    for name in names or FAMILIES:
        cases, table = FAMILIES[name]()
        tensors = {}
        for index, spec in enumerate(cases):
            for key, value in compute(spec, table[spec["op"]], index).items():
                tensors[f"{index}/{key}"] = value
        save_file(tensors, HERE / f"operators-{name}.safetensors")
        text = ",\n".join(json.dumps(spec) for spec in cases)
        Path(HERE, f"operators-{name}.json").write_text(f"[\n{text}\n]\n")
        print(name, len(cases), "cases")


if __name__ == "__main__":
    main(sys.argv[1:])
