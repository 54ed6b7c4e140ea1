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
        "groupNorm": lambda x, *p, groups, eps=1e-5: F.group_norm(x, groups, *p, eps=eps),
        "instanceNorm": lambda x, *p: F.instance_norm(x, None, None, *p),
        "batchNorm": lambda x, *p: F.batch_norm(x, None, None, *p, training=True),
        "softmax": lambda x, axis=-1: torch.softmax(x, axis),
        "logSoftmax": lambda x, axis=-1: torch.log_softmax(x, axis),
        "logSumExp": lambda x, axis=-1: torch.logsumexp(x, axis),
    }
    cases = [case("layerNorm", [[3, width], [width], [width]], {"eps": eps}) for width in (1, 5, 16, 67) for eps in (1e-5, 0.1)]
    cases += [case("layerNorm", [[2, 3, 19]], {}), case("layerNorm", [[4, 33], [33]], {}, scale=5)]
    cases += [case("groupNorm", [[2, 6, 3, 2], [6], [6]], {"groups": groups}) for groups in (1, 3, 6)]
    cases += [case("groupNorm", [[3, 4]], {"groups": 2, "eps": 0.1})]
    cases += [case("instanceNorm", [[2, 3, 4, 2]], {}), case("instanceNorm", [[2, 3, 7], [3], [3]], {})]
    cases += [case("batchNorm", [[3, 4, 2, 3], [4], [4]], {}), case("batchNorm", [[5, 3]], {})]
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


def images():
    def interpolate(x, size, mode="nearest", alignCorners=False):
        return F.interpolate(x, size, mode=mode, align_corners=alignCorners if mode == "bilinear" else None)

    def pad(x, widths, mode="constant", value=0):
        flat = [w for pair in reversed(widths) for w in pair]
        return F.pad(x, flat, mode=mode, **({"value": value} if mode == "constant" else {}))

    table = {
        "maxPool2d": lambda x, size, **o: F.max_pool2d(x, size, **o),
        "avgPool2d": lambda x, size, countIncludePad=True, **o: F.avg_pool2d(
            x, size, count_include_pad=countIncludePad, **o
        ),
        "adaptiveAvgPool2d": lambda x, size: F.adaptive_avg_pool2d(x, size),
        "upsample2d": interpolate,
        "pad": pad,
    }
    shape = [[2, 3, 7, 6]]
    cases = [case("maxPool2d", shape, {"size": size, **o}) for size, o in (
        (2, {}), ([3, 2], {"stride": 1}), (3, {"stride": 2, "padding": 1}), (2, {"dilation": 2, "stride": 1}),
        ([2, 3], {"stride": [2, 1], "padding": [1, 0]}),
    )]
    cases += [case("avgPool2d", shape, {"size": size, **o}) for size, o in (
        (2, {}), ([3, 2], {"stride": 1}), (3, {"stride": 2, "padding": 1}),
        (3, {"stride": 2, "padding": 1, "countIncludePad": False}),
    )]
    cases += [case("adaptiveAvgPool2d", shape, {"size": size}) for size in ([1, 1], [3, 4], [7, 6], [9, 5])]
    for size in ([14, 12], [5, 9], [3, 1]):
        cases += [case("upsample2d", shape, {"size": size})]
        cases += [case("upsample2d", shape, {"size": size, "mode": "bilinear", "alignCorners": a}) for a in (False, True)]
    cases += [case("pad", shape, {"widths": [[1, 2], [0, 3]]}), case("pad", [[2, 3]], {"widths": [[1, 0]], "value": 1.5})]
    for mode in ("reflect", "replicate", "circular"):
        cases.append(case("pad", shape, {"widths": [[1, 2], [3, 0]], "mode": mode}))
    return cases, table


def indexing():
    def linear_scan(a, b, *initial, axis, reverse=False):
        steps = list(zip(a.unbind(axis), b.unbind(axis)))
        state = initial[0] if initial else torch.zeros_like(steps[0][0])
        result = []
        for at, bt in reversed(steps) if reverse else steps:
            state = at * state + bt
            result.append(state)
        return torch.stack(result[::-1] if reverse else result, axis)

    def scatter_add(source, index, size, axis):
        shape = list(source.shape)
        shape[axis] = size
        return torch.zeros(shape, dtype=source.dtype).scatter_add(axis, index, source)

    table = {
        "gather": lambda x, index, axis: torch.gather(x, axis, index),
        "takeAlongAxis": lambda x, index, axis: torch.take_along_dim(x, index, axis),
        "scatterAdd": scatter_add,
        "indexSelect": lambda x, index, axis: torch.index_select(x, axis, index),
        "sort": lambda x, axis=-1, descending=False: torch.sort(x, axis, descending).values,
        "topk": lambda x, k, axis=-1, largest=True: torch.topk(x, k, axis, largest).values,
        "flip": lambda x, axis: torch.flip(x, [axis]),
        "cumsum": lambda x, axis: torch.cumsum(x, axis),
        "cumprod": lambda x, axis: torch.cumprod(x, axis),
        "logCumSumExp": lambda x, axis: torch.logcumsumexp(x, axis),
        "linearScan": linear_scan,
        "prod": lambda x, axis=-1: torch.prod(x, axis),
        "variance": lambda x, axes, correction=1: torch.var(x, axes, correction=correction),
        "std": lambda x, axes: torch.std(x, axes),
        "min": lambda x, axes: torch.amin(x, axes),
        "tril": lambda x, diagonal=0: torch.tril(x, diagonal),
        "triu": lambda x, diagonal=0: torch.triu(x, diagonal),
        "repeat": lambda x, counts: x.repeat(*counts),
        "repeatInterleave": lambda x, count, axis: torch.repeat_interleave(x, count, axis),
        "stack": lambda a, b, axis: torch.stack([a, b], axis),
        "split": lambda x, size, axis, part: torch.split(x, size, axis)[part],
    }
    cases = [
        case("gather", [[3, 4]], {"axis": 1}, ints=[[[3, 0, 1, 1, 2], [0, 0, 0, 0, 0], [1, 2, 3, 2, 1]]]),
        case("gather", [[3, 4]], {"axis": 0}, ints=[[[2, 0], [1, 1]]]),
        case("gather", [[2, 3, 2]], {"axis": -2}, ints=[[[[2, 0]], [[1, 1]]]]),
        case("takeAlongAxis", [[3, 4]], {"axis": 1}, ints=[[[2, 0]]]),
        case("scatterAdd", [[2, 3]], {"axis": 0, "size": 4}, ints=[[[3, 0, 1], [3, 1, 1]]]),
        case("scatterAdd", [[2, 3]], {"axis": 1, "size": 5}, ints=[[[3, 0, 3], [4, 1, 1]]]),
        case("indexSelect", [[3, 4, 2]], {"axis": 1}, ints=[[3, 3, 0]]),
    ]
    cases += [case("sort", [[3, 40]], {}), case("sort", [[5, 3]], {"axis": 0, "descending": True})]
    cases += [case("topk", [[3, 40]], {"k": 7}), case("topk", [[9, 2]], {"k": 3, "axis": 0, "largest": False})]
    for axis in (0, 1, -1):
        cases += [case(op, [[2, 5, 3]], {"axis": axis}) for op in ("flip", "cumsum", "cumprod", "prod")]
        cases.append(case("linearScan", [[2, 5, 3], [2, 5, 3]], {"axis": axis}))
    cases.append(case("linearScan", [[2, 5, 3], [2, 5, 3], [2, 3]], {"axis": 1, "reverse": True}))
    cases.append(case("linearScan", [[7, 40], [7, 40], [40]], {"axis": 0}))
    cases += [case("variance", [[3, 4, 5]], {"axes": axes, "correction": c}) for axes, c in (([1], 1), ([0, 2], 0))]
    cases += [case(op, [[3, 4, 5]], {"axes": axes}) for op in ("std", "min") for axes in ([1], [0, 2])]
    cases += [case(op, [[2, 4, 5]], {"diagonal": d}) for op in ("tril", "triu") for d in (0, 2, -1)]
    cases += [case("repeat", [[2, 3]], {"counts": counts}) for counts in ([1, 2], [2, 3], [2, 1, 2])]
    cases += [case("repeatInterleave", [[2, 3]], {"count": 3, "axis": axis}) for axis in (0, 1)]
    cases += [case("stack", [[2, 3], [2, 3]], {"axis": axis}) for axis in (0, 1, -1)]
    cases += [case("split", [[7, 3]], {"size": size, "axis": 0, "part": 1}) for size in (4, [2, 2, 3])]
    cases += [case("logCumSumExp", [[2, 9, 3]], {"axis": axis}, scale=scale) for axis in (0, 1, -1) for scale in (1, 60)]
    return cases, table


def einsums():
    cases = []
    for equation, *shapes in (
        ("ij,jk->ik", [3, 4], [4, 5]),
        ("ij,kj", [3, 4], [5, 4]),
        ("ji,jk->ki", [4, 3], [4, 5]),
        ("bqhd,bkhd->bhqk", [2, 3, 2, 4], [2, 5, 2, 4]),
        ("bhqk,bkhd->bqhd", [2, 2, 3, 5], [2, 5, 2, 4]),
        ("i,j->ij", [3], [4]),
        ("ij,ij->ij", [3, 4], [3, 4]),
        ("ij,ij->", [3, 4], [3, 4]),
        ("ij->ji", [3, 4]),
        ("ij->", [3, 4]),
        ("ij->j", [3, 4]),
        ("ii->i", [4, 4]),
        ("ii", [4, 4]),
        ("iji->j", [3, 4, 3]),
        ("iii->i", [3, 3, 3]),
        ("...ij,...jk->...ik", [2, 1, 3, 4], [5, 4, 2]),
        ("b...,b->b...", [2, 3, 4], [2]),
        ("i...->...", [3, 4, 2]),
        ("ij,jk,kl->il", [3, 4], [4, 5], [5, 2]),
        ("ij,ik,i->jk", [3, 4], [3, 5], [3]),
        ("bij,bjk,kb,l->il", [2, 3, 4], [2, 4, 5], [5, 2], [3]),
        ("ijk,ik->j", [2, 3, 4], [2, 4]),
        (" a b , b c -> c a ", [2, 3], [3, 4]),
        ("Ba,aB->B", [2, 3], [3, 2]),
    ):
        cases.append(case("einsum", shapes, {"equation": equation}))
    return cases, {"einsum": lambda *operands, equation: torch.einsum(equation, *operands)}


FAMILIES = {f.__name__: f for f in (activations, norms, convolutions, images, indexing, einsums)}


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
