"""Writes first_steps.json: the first step of every TRL curve in ../../../../shared golden `trl` folder, as pure numbers.

Run: python make_first_steps.py TRL_DIR LLAMA_DIR  (PyTorch, Transformers, PEFT; float32 on a CPU)
For each curve: the loss that TRL's trainer logged for its first step, and the log-probability of every token but the
first of each sequence under the policy that the run starts from.
"""
import json, os, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

trl, llama = sys.argv[1:3]
base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32, attn_implementation="eager")
model = PeftModel.from_pretrained(base, os.path.join(llama, "lora")).eval()


def logp(prompt, completion):
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        p = torch.log_softmax(model(input_ids=ids).logits[0, :-1], -1)
    return [round(x, 6) for x in p.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()]


out = {}
for name in ("dpo-sigmoid", "dpo-hinge", "dpo-ipo", "dpo-robust", "kto", "orpo", "cpo", "simpo"):
    curve = json.load(open(os.path.join(trl, name + ".json")))
    step, rows = curve["steps"][0], []
    for row in curve["rows"][: 4 if name == "kto" else 2]:
        prompt = row["prompt_ids"]
        one = dict(prompt_tokens=len(prompt) - 1)
        for key in ("chosen_ids", "rejected_ids", "completion_ids", "KL_completion_ids"):
            if key in row:
                one[key.removesuffix("_ids")] = logp(prompt, row[key])
        if "label" in row:
            one["label"] = row["label"]
        rows.append(one)
    keep = {k: v for k, v in step.items() if k.split("/")[0] in ("loss", "rewards", "logps", "nll_loss", "log_odds_ratio", "log_odds_chosen", "kl")}
    out[name] = dict(rows=rows, logged=keep)
json.dump(out, open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "first_steps.json"), "w"), indent=1)
