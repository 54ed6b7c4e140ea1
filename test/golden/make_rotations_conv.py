"""Makes OFT and BOFT on a small convolutional network as PEFT makes and saves them, and what PEFT's merged network computes.

rotations-conv/<variant>/                   the adapters
rotations-conv.golden.safetensors           base.<name>, x [2, 3, 9, 8]; `<variant>.y`, `<variant>.gradient.<key>` of Σ y²,
                                            `<variant>.merged.<module>.weight`
rotations-conv-heddle.golden.safetensors    with --check: `<variant>.y` of the folders of make_rotations_conv_heddle.ts

PEFT computes y with rotated kernels for BOFT. For OFT it rotates the patches of the image and adds up where they
overlap: under a window of more than one pixel a fresh adapter changes the output, and the merged network computes
something else. So y and gradients are those of its merged kernels (get_delta_weight) in every variant.

Run: OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_rotations_conv.py [--check]
"""

import shutil
import sys
from pathlib import Path

import torch
from peft import BOFTConfig, OFTConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.oft.layer import Conv2d as OftConv2d
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

from check_in_peft import compare
from make_block_methods import boft_without_cuda

HERE = Path(__file__).parent
OUT = HERE / "rotations-conv"
VARIANTS = {
    "oft": (OFTConfig, {"oft_block_size": 4, "target_modules": ["conv2", "fc"]}),
    "oft-exact": (OFTConfig, {"oft_block_size": 0, "r": 3, "use_cayley_neumann": False, "target_modules": ["conv1"]}),
    "oft-shared": (OFTConfig, {"oft_block_size": 9, "block_share": True, "target_modules": ["conv1"]}),
    "oft-pointwise": (OFTConfig, {"oft_block_size": 8, "target_modules": ["conv3"], "bias": "oft_only"}),
    "boft": (BOFTConfig, {"boft_block_size": 3, "target_modules": ["conv1"]}),
    "boft-butterfly": (BOFTConfig, {"boft_block_size": 2, "boft_n_butterfly_factor": 3, "target_modules": ["conv2"]}),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 2)
        self.conv3 = nn.Conv2d(8, 5, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        for conv in (self.conv1, self.conv2, self.conv3):
            x = conv(x).relu()
        return self.fc(x.mean((2, 3)))


def base() -> Net:
    torch.manual_seed(0)
    return Net()


def main() -> None:
    torch.set_num_threads(1)
    boft_without_cuda()
    OftConv2d.forward = merged_forward
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    if sys.argv[1:] == ["--check"]:
        return check(x)
    shutil.rmtree(OUT, ignore_errors=True)
    tensors = {f"base.{k}": v for k, v in base().state_dict().items()} | {"x": x}
    for seed, (name, (config, options)) in enumerate(VARIANTS.items()):
        torch.manual_seed(10 + seed)
        model = get_peft_model(base(), config(**options))
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(0.2 * torch.randn_like(p))
        model.save_pretrained(OUT / name)
        (OUT / name / "README.md").unlink(missing_ok=True)
        model = PeftModel.from_pretrained(base(), OUT / name, is_trainable=True)
        y = model(x)
        y.square().sum().backward()
        tensors[f"{name}.y"] = y.detach()
        for key, p in model.named_parameters():
            if p.requires_grad:
                tensors[f"{name}.gradient.{key.replace('.default', '')}"] = p.grad
        merged = PeftModel.from_pretrained(base(), OUT / name).merge_and_unload()
        assert torch.allclose(merged(x), y, atol=1e-5), name
        for module, layer in merged.named_children():
            tensors[f"{name}.merged.{module}.weight"] = layer.weight.detach()
    save(tensors, "rotations-conv.golden.safetensors")


def merged_forward(self: OftConv2d, x: torch.Tensor) -> torch.Tensor:
    """What PEFT's OFT computes at a convolution once it is merged."""
    layer = self.get_base_layer()
    rows = layer.weight.flatten(1) @ self.get_delta_weight("default").T
    return nn.functional.conv2d(x, rows.view_as(layer.weight), layer.bias, layer.stride, layer.padding)


def check(x: torch.Tensor) -> None:
    tensors = {}
    for name in VARIANTS:
        folder = HERE / "rotations-conv-heddle" / name
        config = PeftConfig.from_pretrained(folder)
        # Heddle's adapters are those of language models unless told otherwise.
        config.task_type = None
        model = PeftModel.from_pretrained(base(), folder, config=config)
        problems = compare(load_file(folder / "adapter_model.safetensors"), get_peft_model_state_dict(model))
        print(name, problems or "ok")
        tensors[f"{name}.y"] = model.merge_and_unload()(x).detach()
    save(tensors, "rotations-conv-heddle.golden.safetensors")


def save(tensors: dict, name: str) -> None:
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / name)
    for path in [*OUT.glob("*/*"), HERE / name]:
        path.chmod(0o644)


if __name__ == "__main__":
    main()
