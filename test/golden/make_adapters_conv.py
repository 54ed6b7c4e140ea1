"""Makes LoRA's variants on a small convolutional network as PEFT makes and saves them, and what torch computes.

adapters-conv/<variant>/            the adapters
adapters-conv.golden.safetensors    base.<name>, x [2, 3, 9, 8]; `<variant>.y`; `<variant>.gradient.<key>` of Σ y²;
                                    `<variant>.merged.<module>.weight` where PEFT can merge

Run: OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_adapters_conv.py
"""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

HERE = Path(__file__).parent
OUT = HERE / "adapters-conv"
VARIANTS = {
    "plain": {"target_modules": ["conv1", "fc"], "rank_pattern": {"conv1": 2}},
    "pointwise": {"target_modules": ["conv3"]},
    "grouped": {"target_modules": ["conv2"]},
    "dora": {"target_modules": ["conv1", "conv3"], "use_dora": True},
    "bias": {"target_modules": ["conv1"], "lora_bias": True, "modules_to_save": ["fc"]},
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, groups=2, bias=False)
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
    shutil.rmtree(OUT, ignore_errors=True)
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    tensors = {f"base.{k}": v for k, v in base().state_dict().items()} | {"x": x}
    for seed, (name, options) in enumerate(VARIANTS.items()):
        torch.manual_seed(10 + seed)
        model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=6, **options))
        with torch.no_grad():
            for key, p in model.named_parameters():
                if p.requires_grad and "lora_A" not in key:
                    p.add_(0.2 * torch.randn_like(p))
        model.save_pretrained(OUT / name)
        (OUT / name / "README.md").unlink(missing_ok=True)
        model = PeftModel.from_pretrained(base(), OUT / name, is_trainable=True)
        y = model(x)
        y.square().sum().backward()
        tensors[f"{name}.y"] = y.detach()
        for key, p in model.named_parameters():
            if p.requires_grad:
                stored = key.replace(".modules_to_save", "").replace(".default", "")
                tensors[f"{name}.gradient.{stored.replace('magnitude_vector.weight', 'magnitude_vector')}"] = p.grad
        if name != "grouped":
            merged = PeftModel.from_pretrained(base(), OUT / name).merge_and_unload()
            for module in options["target_modules"]:
                tensors[f"{name}.merged.{module}.weight"] = merged.get_submodule(module).weight.detach()
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / "adapters-conv.golden.safetensors")
    for path in [*OUT.glob("*/*"), HERE / "adapters-conv.golden.safetensors"]:
        path.chmod(0o644)


if __name__ == "__main__":
    main()
