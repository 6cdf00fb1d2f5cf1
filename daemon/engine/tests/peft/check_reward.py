"""Loads a reward model that finetuned wrote with transformers (and PEFT) and compares values.

Run: python check_reward.py MODEL_FOLDER ADAPTER_FOLDER|- VALUES.safetensors
The last file holds `input_ids` (D, T) and `values` (D) as finetuned computes them. With `-` the model folder
is itself the trained one. Needs torch, transformers, peft and safetensors. Exits with 1 when a value differs
by more than 1e-3, or a layer was not in the files.
"""
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

model, adapter, numbers = sys.argv[1:4]
expected = load_file(numbers)
if adapter == "-":
    trained, loading = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not loading["missing_keys"], loading
    assert trained.config.num_labels == 1 and trained.config.architectures == [type(trained).__name__], trained.config
else:
    from peft import PeftConfig, PeftModel
    config = PeftConfig.from_pretrained(adapter)
    assert config.task_type == "SEQ_CLS" and "score" in config.modules_to_save, config
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32, attn_implementation="eager")
    trained = PeftModel.from_pretrained(base, adapter)
trained.eval()
with torch.no_grad():
    values = torch.stack([trained(input_ids=ids[None]).logits[0, 0] for ids in expected["input_ids"].long()])
difference = (values - expected["values"]).abs().max().item()
print(f"largest difference of values {difference:.2e}; they reach {values.abs().max().item():.2f}")
sys.exit(0 if difference < 1e-3 and values.abs().max() > 0.1 else 1)
