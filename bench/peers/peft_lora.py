"""The peer of `npm run bench -- train-lora` and `-- randlora`: one LoRA training step of PEFT + torch at the SmolLM2-135M shape.

r 16 on all seven linears, 4 x 256 random tokens, cross-entropy over 49152 words, AdamW on the adapters, f32 adapters.

  python peft_lora.py --dtype f32 --threads 2 --steps 5     measures and prints one JSON line
  python peft_lora.py --dtype bf16 --serve                  one step per line `step` on stdin, answered by {"seconds": ...}

With --serve, {"ready": ...} comes after the warm-up, `report` answers with peak memory, end of input ends the program:
a benchmark can so alternate single steps of two libraries on the same threads.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time


def main() -> None:
    args = parse()
    # OpenMP reads its environment once, when torch is loaded.
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    if args.bind != "none":
        os.environ["OMP_PROC_BIND"] = args.bind
    if args.wait != "default":
        os.environ["OMP_WAIT_POLICY"] = args.wait

    step, description = prepare(args)
    for _ in range(args.warmup):
        timed(step)
    if args.serve:
        serve(step, description)
        return
    runs = [timed(step) for _ in range(args.steps)]
    seconds = [s for _, s in runs]
    tokens = args.batch * args.length
    print(json.dumps({
        **description,
        "losses": [loss for loss, _ in runs],
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "tokens_per_second": tokens / statistics.median(seconds),
        "peak_bytes": peak_bytes(),
    }), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--bf16-mode", choices=["peft", "autocast", "bf16-adapters"], default="peft",
                        help="peft: bf16 base, f32 adapters; autocast: the same under torch.autocast; "
                             "bf16-adapters: everything in bf16 (autocast_adapter_dtype=False)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument("--bind", choices=["none", "true", "close", "spread"], default="none")
    parser.add_argument("--wait", choices=["default", "active", "passive"], default="default")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (needs a C++ compiler)")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing: less memory, slower")
    parser.add_argument("--method", choices=["lora", "randlora"], default="lora", help="randlora: r 32 instead")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--serve", action="store_true")
    return parser.parse_args()


def prepare(args: argparse.Namespace):
    import peft
    import torch
    import transformers
    from peft import LoraConfig, RandLoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=576, num_hidden_layers=args.layers, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0}, attn_implementation=args.attention,
    )).to(dtype)
    model.config.use_cache = False
    if args.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    targets = {
        "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
    if args.method == "randlora":
        adapter = RandLoraConfig(r=32, randlora_alpha=32, **targets)
    else:
        adapter = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, **targets)
    mode = args.bf16_mode if args.dtype == "bf16" else "f32"
    model = get_peft_model(model, adapter, autocast_adapter_dtype=mode != "bf16-adapters").train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.01)
    ids = torch.randint(0, 49152, (args.batch, args.length), generator=torch.Generator().manual_seed(1))
    forward = torch.compile(model) if args.compile else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "autocast"):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    description = {
        "peer": "peft", "dtype": args.dtype, "mode": mode, "threads": args.threads, "attention": args.attention,
        "compile": args.compile, "checkpointing": args.checkpointing, "layers": args.layers,
        "tokens": args.batch * args.length, "trainable": sum(p.numel() for p in trained),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
    }
    return step, description


def timed(step) -> tuple[float, float]:
    start = time.perf_counter()
    loss = step()
    return loss, time.perf_counter() - start


def serve(step, description: dict) -> None:
    print(json.dumps({"ready": True, **description}), flush=True)
    for line in sys.stdin:
        command = line.strip()
        if command == "step":
            loss, seconds = timed(step)
            answer = {"seconds": seconds, "loss": loss}
        elif command == "report":
            answer = {"peak_bytes": peak_bytes()}
        else:
            answer = {"error": f"expected step or report but received {command!r}"}
        print(json.dumps(answer), flush=True)


def peak_bytes() -> int:
    """ru_maxrss counts KiB on Linux and bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
