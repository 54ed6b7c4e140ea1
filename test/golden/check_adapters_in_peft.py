"""Loads into real PEFT every adapter of adapters-heddle/ (make_adapters_heddle.ts), peft-methods-heddle/ and
block-methods-heddle/ (make_peft_methods_heddle.ts), plain-forms-heddle/ (make_plain_forms_heddle.ts) and adalora/heddle/
(make_adalora_heddle.ts), refuses what check_in_peft.py refuses, and writes <folder>.golden.safetensors:
`<variant>.logits` of every eighth position.

Run: OMP_NUM_THREADS=1 python check_adapters_in_peft.py
"""

import json
import re
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from check_in_peft import HARMLESS, compare, load_base
from make_block_methods import boft_without_cuda

HERE = Path(__file__).parent
# Said of the options, whoever wrote the folder.
OF_THE_OPTIONS = ("has no bias. This means that merging", "have invalid shape", "`ensure_weight_tying` is not set",
                  "Invalid `oft_block_size`",
                  # PEFT says this of its own folders of AdaLoRA.
                  "The following rank_pattern keys did not match",
                  "Specified to not save vera_A", "Specified to not load vera_A", "Specified to not save basis_A")
COPY_OF_SHARED = re.compile(r"base_model\.model\..*\.randlora_[AB]")
MISSED_COPIES = re.compile(r"Found missing adapter keys while loading the checkpoint: "
                           r"\[('base_model\.model\.[^']*\.randlora_[AB]\.default'(, )?)+\]\.?")


def main() -> int:
    torch.set_num_threads(1)
    boft_without_cuda()
    adalora = json.loads((HERE / "adalora.golden.json").read_text())
    logits, problems = check(HERE / "adalora/heddle", HERE / adalora["base"], torch.tensor(adalora["ids"]))
    print("adalora", problems or "ok")
    save_file({"logits": logits}, HERE / "adalora-heddle.golden.safetensors")
    eva = json.loads((HERE / "eva.golden.json").read_text())
    logits, of_eva = check(HERE / "eva-heddle", HERE / eva["base"], torch.tensor(eva["batches"][0]["input_ids"]))
    print("eva", of_eva or "ok")
    save_file({"logits": logits}, HERE / "eva-heddle.golden.safetensors")
    problems += of_eva
    folders = ("adapters", "peft-methods", "block-methods", "plain-forms")
    return int(bool(problems) or any([check_all(made) for made in folders]))


def check_all(made: str) -> bool:
    """True when something is not as PEFT would have written it."""
    goldens = json.loads((HERE / f"{made}.golden.json").read_text())["variants"]
    out = HERE / f"{made}-heddle.golden.safetensors"
    tensors, failed = {}, False
    for name, variant in goldens.items():
        folder = HERE / f"{made}-heddle" / name
        logits, problems = check(folder, HERE / variant["base"], torch.tensor(variant["ids"]))
        print(name, problems or "ok")
        tensors[f"{name}.logits"] = logits
        failed = failed or bool(problems)
    save_file(tensors, out)
    out.chmod(0o644)
    return failed


def check(folder: Path, base: Path, ids: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = PeftConfig.from_pretrained(folder)
        model = PeftModel.from_pretrained(load_base(base), folder, config=config).eval()
        loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    # PEFT writes RandLoRA's shared matrices once more under every module, and misses them there, but does not need them.
    loaded = {key: value for key, value in loaded.items() if not COPY_OF_SHARED.fullmatch(key)}
    problems = [f"warning: {w.message}" for w in caught
                if not issubclass(w.category, HARMLESS) and not MISSED_COPIES.fullmatch(str(w.message).strip())
                and not any(text in str(w.message) for text in OF_THE_OPTIONS)]
    problems += compare(load_file(folder / "adapter_model.safetensors"), loaded)
    with torch.no_grad():
        return model(input_ids=ids).logits[:, ::8].contiguous(), problems


if __name__ == "__main__":
    sys.exit(main())
