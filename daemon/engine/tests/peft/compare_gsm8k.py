"""Trains the same tokenised rows with PEFT as `finetune train` does, to compare losses and speed.

Run: python compare_gsm8k.py MODEL_FOLDER TRAIN.jsonl VALIDATION.jsonl [--threads N] [--epochs N] [--steps N]
Rows hold `input_ids` and `labels`. LoRA rank 16, alpha 32, all linear layers, dropout 0,
AdamW (0.9, 0.999), weight decay 0, constant 2e-4, clipping 1.0, 8 rows a step in order,
loss summed over the step and divided once by its trained tokens. float32 on the CPU.
Prints the validation loss (mean over trained tokens) before and after, and tokens a second.
`--speed` instead times steps of 4 sequences of 256 tokens, all trained, and prints the
peak memory of the process.
"""
import argparse, json, resource, time
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

a = argparse.ArgumentParser()
a.add_argument("model"); a.add_argument("train", nargs="?"); a.add_argument("validation", nargs="?")
a.add_argument("--threads", type=int, default=2); a.add_argument("--epochs", type=int, default=2)
a.add_argument("--speed", action="store_true"); a.add_argument("--steps", type=int, default=4)
a = a.parse_args()
torch.set_num_threads(a.threads)
torch.manual_seed(42)
base = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
base.config.use_cache = False
m = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
                                    target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=2e-4, betas=(0.9, 0.999), weight_decay=0.0)
params = [p for p in m.parameters() if p.requires_grad]

if a.speed:
    ids = torch.randint(0, base.config.vocab_size, (4, 256))
    times = []
    for step in range(a.steps + 1):
        t = time.time()
        loss = m(input_ids=ids, labels=ids).loss
        opt.zero_grad(); loss.backward(); torch.nn.utils.clip_grad_norm_(params, 1.0); opt.step()
        if step: times.append(time.time() - t)
    times.sort()
    print(f"PEFT + PyTorch: {1024 / times[len(times) // 2]:.1f} tokens/s, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    raise SystemExit


def rows(path):
    return [json.loads(line) for line in open(path)]


def batch(rows):
    n = max(len(r["input_ids"]) for r in rows)
    ids = torch.tensor([r["input_ids"] + [0] * (n - len(r["input_ids"])) for r in rows])
    labels = torch.tensor([r["labels"] + [-100] * (n - len(r["labels"])) for r in rows])
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (n - len(r["input_ids"])) for r in rows])
    logits = m(input_ids=ids, attention_mask=mask).logits
    targets = labels[:, 1:].reshape(-1)
    loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), targets, ignore_index=-100, reduction="sum")
    return loss, int((targets != -100).sum()), int(mask.sum())


def held_out(v):
    with torch.no_grad():
        parts = [batch(v[i:i + 4])[:2] for i in range(0, len(v), 4)]
    return sum(p[0].item() for p in parts) / sum(p[1] for p in parts)


train, validation = rows(a.train), rows(a.validation)
print("validation loss before", held_out(validation), flush=True)
start, tokens = time.time(), 0
for epoch in range(a.epochs):
    for i in range(0, len(train), 8):
        loss, count, n = batch(train[i:i + 8])
        opt.zero_grad(); (loss / count).backward(); torch.nn.utils.clip_grad_norm_(params, 1.0); opt.step()
        tokens += n
    print("epoch", epoch + 1, "validation loss", held_out(validation), f"{tokens / (time.time() - start):.1f} tokens/s with validation", flush=True)
