"""Writes adamw_8bit.json: every 97th parameter after each of six steps of bitsandbytes' AdamW8bit (0.50) on a CPU.

Its CPU quantiser is a lossy table look-up; the nearest code, which its CUDA kernel takes, stands in for it here.
"""
import json
import torch, bitsandbytes as bnb
from bitsandbytes.backends.cpu import ops


def nearest(values, code, absmax_out, codes_out, blocksize):
    n = values.numel()
    padded = torch.zeros(-(-n // blocksize) * blocksize)
    padded[:n] = values.flatten()
    blocks = padded.view(-1, blocksize)
    absmax = blocks.abs().amax(1)
    scaled = (blocks / absmax.clamp(min=1e-38)[:, None]).flatten()[:n]
    codes_out.copy_((scaled[:, None] - code[None, :]).abs().argmin(1).to(torch.uint8).view_as(codes_out))
    absmax_out.copy_(absmax)


ops._quant_blockwise_fp32_direct = nearest
n = 5000
i = torch.arange(n, dtype=torch.float64)
p = torch.nn.Parameter(torch.sin(i * 0.37).float())
opt = bnb.optim.AdamW8bit([p], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
out = []
for t in range(1, 7):
    p.grad = (torch.cos(i * 0.11 + t * 0.2) * torch.exp(-(i % 512) / 64.0) * t).float()
    opt.step()
    out.append(p.detach()[::97].tolist())
json.dump(out, open("adamw_8bit.json", "w"))
