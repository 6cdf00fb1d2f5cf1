"""Loads an adapter that finetuned wrote with Hugging Face PEFT and compares logits.

Run: python check_adapter.py MODEL_FOLDER ADAPTER_FOLDER LOGITS.safetensors
The last file holds `input_ids` (T) and `logits` (T, V) as finetuned computes them.
Needs torch, transformers, peft and safetensors. Exits with 1 when they differ by more
than 1e-3.
"""
import sys
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

model, adapter, numbers = sys.argv[1:4]
base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
peft = PeftModel.from_pretrained(base, adapter).eval()
expected = load_file(numbers)
with torch.no_grad():
    logits = peft(input_ids=expected["input_ids"].long()[None]).logits[0]
    bare = None
    with peft.disable_adapter():
        bare = peft(input_ids=expected["input_ids"].long()[None]).logits[0]
difference = (logits - expected["logits"]).abs().max().item()
effect = (logits - bare).abs().max().item()
print(f"largest difference of logits {difference:.2e}; the adapter changes them by up to {effect:.2e}")
# An adapter that does nothing would agree with anything.
sys.exit(0 if difference < 1e-3 and effect > 1e-2 else 1)
