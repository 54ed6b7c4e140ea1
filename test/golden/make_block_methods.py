"""As make_peft_methods.py, for the methods that share or rotate blocks of channels: MiSS, OFT and BOFT.

Run after make_adapters.py: OMP_NUM_THREADS=1 PYTHONHASHSEED=0 python make_block_methods.py
"""

import peft.tuners.boft.layer
import torch
from peft import BOFTConfig, MissConfig, OFTConfig

from make_peft_methods import LLAMA, QWEN, make_all

CONFIGS = {"miss": MissConfig, "oft": OFTConfig, "boft": BOFTConfig}

VARIANTS = {
    "miss": ("miss", LLAMA, {"r": 7, "target_modules": ["q_proj", "down_proj"]}),
    "miss-bat": ("miss", LLAMA, {"r": 16, "init_weights": "bat", "target_modules": ["k_proj", "down_proj"]}),
    "miss-mini": ("miss", QWEN, {"r": 6, "mini_r": 8, "init_weights": "mini", "bias": "MiSS_only",
                                 "target_modules": ["q_proj", "up_proj"]}),
    "oft": ("oft", LLAMA, {"oft_block_size": 8, "target_modules": ["q_proj", "down_proj"]}),
    "oft-exact": ("oft", QWEN, {"r": 4, "oft_block_size": 0, "use_cayley_neumann": False, "bias": "oft_only",
                                "target_modules": ["q_proj", "up_proj"]}),
    "oft-terms": ("oft", LLAMA, {"oft_block_size": 20, "num_cayley_neumann_terms": 3, "target_modules": ["v_proj"]}),
    "oft-shared": ("oft", LLAMA, {"oft_block_size": 16, "block_share": True, "use_cayley_neumann": False,
                                  "target_modules": ["q_proj", "down_proj"]}),
    "oft-constrained": ("oft", LLAMA, {"oft_block_size": 8, "coft": True, "eps": 0.2, "target_modules": ["q_proj"]}),
    "oft-embedding": ("oft", LLAMA, {"oft_block_size": 8, "target_modules": ["embed_tokens", "q_proj"]}),
    "boft": ("boft", LLAMA, {"boft_block_size": 8, "target_modules": ["q_proj", "down_proj"]}),
    "boft-bias": ("boft", QWEN, {"boft_block_size": 0, "boft_block_num": 8, "bias": "boft_only",
                                 "target_modules": ["q_proj", "up_proj"]}),
    "boft-butterfly": ("boft", LLAMA, {"boft_block_size": 4, "boft_n_butterfly_factor": 3,
                                       "target_modules": ["q_proj", "down_proj"]}),
}


def boft_without_cuda() -> None:
    """Lets PEFT's BOFT have several butterfly factors on a CPU: what its CUDA extension computes, in torch."""
    class Blocks:
        @staticmethod
        def apply(factors):
            return torch.stack([torch.block_diag(*factor) for factor in factors])

    peft.tuners.boft.layer.get_fbd_cuda = lambda: True
    peft.tuners.boft.layer.FastBlockDiag = Blocks


if __name__ == "__main__":
    boft_without_cuda()
    make_all("block-methods", CONFIGS, VARIANTS)
