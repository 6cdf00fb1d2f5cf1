"""Writes the qlora numbers of every model folder again, in true float32.

bitsandbytes (0.49 and later) multiplies in bfloat16 on CPUs that have AVX512-BF16
whenever a 4-bit layer's input needs no gradient, which is so for the first layer's
q, k and v of a model with a frozen embedding. `make.py` ran on such a CPU, so its
qlora numbers carry bfloat16's rounding (about 2e-2 in the logits). Here the path is
turned off; everything else is as in `make.py`.

Run beside `make.py`: python make_qlora.py
"""
import json, os
import torch
import bitsandbytes as bnb
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from peft import PeftModel
from make import ARCHS, cpu, curve, mean_loss

here = os.path.dirname(os.path.abspath(__file__))
init = bnb.nn.Linear4bit.__init__


def plain(self, *args, **kwargs):
    init(self, *args, **kwargs)
    self.support_avx512bf16_for_cpu = False


bnb.nn.Linear4bit.__init__ = plain
torch.set_num_threads(1)
for name in ARCHS:
    if name == "gpt2":
        continue
    d = os.path.join(here, name)
    q = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                           bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, quantization_config=q,
                                                attn_implementation="eager", device_map="cpu").eval()
    m = PeftModel.from_pretrained(base, f"{d}/lora", is_trainable=True).eval()
    trainable = [p for p in m.parameters() if p.requires_grad]
    f = load_file(f"{d}/forward.safetensors")
    logits = m(input_ids=f["input_ids"]).logits
    loss = mean_loss(logits, f["labels"]); m.zero_grad(); loss.backward()
    os.makedirs(f"{d}/qlora", exist_ok=True)
    save_file(cpu(dict(logits=logits.float(), loss=loss[None])), f"{d}/qlora/forward.safetensors")
    save_file(cpu({n.replace(".default", ""): p.grad for n, p in m.named_parameters() if p.requires_grad}),
              f"{d}/qlora/grads.safetensors")
    b = load_file(f"{d}/batches.safetensors")
    curves = json.load(open(f"{d}/curves.json"))
    curves["qlora"] = curve(m, trainable, list(zip(b["input_ids"], b["labels"])), 5e-3)
    json.dump(curves, open(f"{d}/curves.json", "w"), indent=1)
    print(name, curves["qlora"]["loss"][0], curves["qlora"]["loss"][-1])
