"""Writes reward_model/: a reward model of transformers and PEFT on the tiny `llama` beside this file, and ten steps of it.

Run after make.py and make_trl.py, whose pairs it trains on: python make_reward_model.py
`adapter_*` is the start as PEFT saves it (SEQ_CLS, the golden LoRA factors, a `score` drawn by transformers).
`curve.json` holds the pairs' values under it, and of ten steps the loss -log sigmoid(chosen - rejected) (Bradley-Terry,
TRL's RewardTrainer), gradient norm before clipping, margin and accuracy: AdamW, 2 pairs a step, in float32 on a CPU.
"""
import json, os
import peft, torch, transformers
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

here = os.path.dirname(os.path.abspath(__file__))
out = os.path.join(here, "reward_model")
torch.set_num_threads(1)
torch.manual_seed(17)
base = AutoModelForSequenceClassification.from_pretrained(os.path.join(here, "llama"), num_labels=1, dtype=torch.float32, attn_implementation="eager")
lora = os.path.join(here, "llama", "lora")
config = LoraConfig.from_pretrained(lora)
config.task_type, config.modules_to_save, config.inference_mode, config.lora_dropout = "SEQ_CLS", ["score"], False, 0.0
model = get_peft_model(base, config)
factors = load_file(os.path.join(lora, "adapter_model.safetensors"))
factors["base_model.model.score.weight"] = get_peft_model_state_dict(model)["base_model.model.score.weight"]
set_peft_model_state_dict(model, factors)
model.save_pretrained(out)
os.remove(os.path.join(out, "README.md"))
settings = json.load(open(os.path.join(out, "adapter_config.json")))
settings["base_model_name_or_path"] = None  # else a path of the machine that ran this
json.dump(settings, open(os.path.join(out, "adapter_config.json"), "w"), indent=2, sort_keys=True)

rows = json.load(open(os.path.join(here, "trl", "dpo-sigmoid.json")))["rows"]
value = lambda ids: model(input_ids=torch.tensor([ids])).logits[0, 0]
pair = lambda row: (value(row["prompt_ids"] + row["chosen_ids"]), value(row["prompt_ids"] + row["rejected_ids"]))
with torch.no_grad():
    values = [[v.item() for v in pair(row)] for row in rows]
trained = [p for p in model.parameters() if p.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=5e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
steps = []
for i in range(0, len(rows), 2):
    pairs = [pair(row) for row in rows[i:i + 2]]
    margins = torch.stack([chosen - rejected for chosen, rejected in pairs])
    loss = -F.logsigmoid(margins).mean()
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
    optimizer.step()
    steps.append(dict(loss=loss.item(), grad_norm=norm, margin=margins.mean().item(), accuracy=(margins > 0).float().mean().item()))
json.dump(dict(torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__, values=values, steps=steps),
          open(os.path.join(out, "curve.json"), "w"), indent=1)
print([round(s["loss"], 5) for s in steps], [round(s["grad_norm"], 4) for s in steps])
