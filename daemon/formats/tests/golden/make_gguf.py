"""Makes the GGUF fixtures of this folder and what is expected of them.

    python make_gguf.py          (gguf 0.19, transformers 5.23, numpy)

Each file is a tiny model with random weights, written as llama.cpp's
converter writes that architecture: q and k rows permuted for llama and
smollm3, gemma's norms plus one, GPT-2's Conv1D transposed. `llama.gguf` holds
every tensor type. What a type means is what the `gguf` package says: it
quantises Q8_0, Q4_0, Q4_1, Q5_0 and Q5_1, and for the K types random blocks
are made and dequantised by it.

`expected.json` has, for each file, the SHA-256 of every tensor's f32 bytes
under its transformers name and layout, and the token ids of some texts as
transformers tokenises them from the same file.
"""

import hashlib
import json
import os

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFWriter, TokenType
from gguf.quants import dequantize, quantize
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gguf")
rng = np.random.default_rng(7)
expected = {}

TEXTS = [
    "Hello world! 123",
    "  two  spaces",
    "the theme of the other",
    "a\n\n\tb\r\n",
    "12345 678",
    "Caf\u00e9 \u65e5\u672c \U0001f680",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<s>hello</s> there",
    " leading",
    "",
]


def floats(*shape):
    return rng.standard_normal(shape, dtype=np.float32)


def k_blocks(kind, rows, columns):
    """Random, valid blocks of a K type: any bits will do but the f16 scales'."""
    size, scales = {T.Q4_K: (144, (0, 2)), T.Q5_K: (176, (0, 2)), T.Q6_K: (210, (208,))}[kind]
    blocks = rng.integers(0, 256, (rows, columns // 256, size), dtype=np.uint8)
    for at in scales:
        halves = (rng.standard_normal((rows, columns // 256)) * 0.01).astype(np.float16)
        blocks[:, :, at : at + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def stored(kind, rows, columns):
    """Stored bytes (or floats) of a matrix and the f32 values they mean."""
    if kind in (T.Q4_K, T.Q5_K, T.Q6_K):
        raw = k_blocks(kind, rows, columns)
        return raw, dequantize(raw, kind).reshape(rows, columns)
    weight = floats(rows, columns)
    if kind == T.F32:
        return weight, weight
    if kind == T.F16:
        return weight.astype(np.float16), weight.astype(np.float16).astype(np.float32)
    raw = quantize(weight, kind)
    return raw, dequantize(raw, kind).reshape(rows, columns)


class Model:
    def __init__(self, name, arch):
        self.name = name
        self.path = os.path.join(HERE, name)
        self.writer = GGUFWriter(self.path, arch)
        self.tensors = {}

    def add(self, gguf_name, hf_name, raw, value, kind=T.F32):
        self.writer.add_tensor(gguf_name, np.ascontiguousarray(raw), raw_dtype=kind)
        if hf_name:
            value = np.ascontiguousarray(value, dtype="<f4")
            self.tensors[hf_name] = {
                "shape": list(value.shape),
                "sha256": hashlib.sha256(value.tobytes()).hexdigest(),
                "first": [float(x) for x in value.reshape(-1)[:4]],
            }

    def matrix(self, gguf_name, hf_name, kind, rows, columns, heads=None):
        raw, value = stored(kind, rows, columns)
        if heads:
            # The file's rows are permuted; undo it as transformers does.
            dim = rows // heads // 2
            value = value.reshape(heads, dim, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        self.add(gguf_name, hf_name, raw, value, kind)

    def vector(self, gguf_name, hf_name, n, plus_one=False, heads=None):
        value = floats(n)
        raw = value
        if plus_one:
            raw = value + np.float32(1)
            value = raw - np.float32(1)
        if heads:
            dim = n // heads // 2
            raw = value.reshape(heads, 2, dim).swapaxes(1, 2).reshape(n)
        self.add(gguf_name, hf_name, raw, value)

    def done(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        # transformers reads no GGUF file of smollm3 and olmo2, and for the other two
        # it forgets that the space before a text is doubled, or (phi3) swallowed.
        ids = {}
        if self.name not in ("smollm3.gguf", "olmo2.gguf", "spm-llama.gguf", "phi3.gguf"):
            tokenizer = AutoTokenizer.from_pretrained(HERE, gguf_file=self.name)
            ids = {text: tokenizer.encode(text) for text in TEXTS}
        expected[self.name] = {"tensors": self.tensors, "ids": ids}


def byte_level(writer, pre, bos=None, add_bos=None, unused=2):
    """All bytes, some merges, four special tokens, and fillers."""
    alphabet = list(bytes_to_unicode().values())
    merges = [
        "t h", "th e", "\u0120 the", "h e", "l l", "he ll", "hell o", "\u0120 w", "\u0120 \u0120",
        "o r", "\u0120w or", "1 2", "12 3", "\u010a \u010a", "o t", "e r",
    ]  # fmt: skip
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + alphabet
    tokens += [merge.replace(" ", "") for merge in merges]
    kinds = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3)
    tokens += ["<think>"]
    kinds += [TokenType.USER_DEFINED]
    for i in range(unused):
        tokens.append(f"[PAD{len(tokens)}]")
        kinds.append(TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(2)
    if bos is not None:
        writer.add_bos_token_id(bos)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    return len(tokens)


def sentencepiece(writer, gemma=False):
    S = "\u2581"
    pieces = [S + "t", "he", S + "the", S + "w", "or", S + "wor", "ld", S + "world", "ll", "hell",
              "hello", S + "hello", "th", "er", "12", "123"]  # fmt: skip
    letters = [S] + list("abcdefghijklmnopqrstuvwxyzHW!0123456789")
    specials = ["<pad>", "<eos>", "<bos>", "<unk>"] if gemma else ["<unk>", "<s>", "</s>"]
    kinds = [TokenType.CONTROL] * len(specials)
    kinds[specials.index("<unk>")] = TokenType.UNKNOWN
    tokens = specials + ["<|im_start|>", "<|im_end|>"]
    kinds += [TokenType.CONTROL, TokenType.USER_DEFINED]
    if gemma:
        # Runs of spaces, spelled out by the converter.
        tokens += ["  ", "   "]
        kinds += [TokenType.USER_DEFINED] * 2
    scores = [0.0] * len(tokens)
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    kinds += [TokenType.BYTE] * 256
    scores += [0.0] * 256
    tokens += pieces + letters
    kinds += [TokenType.NORMAL] * (len(pieces) + len(letters))
    scores += [-float(i) for i in range(len(pieces))] + [-1000.0 - i for i in range(len(letters))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    if gemma:
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)
        writer.add_add_space_prefix(False)
    else:
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    return len(tokens)


def sizes(writer, hidden, layers, heads, kv_heads, intermediate, context=256, epsilon=1e-5):
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(epsilon)


def llama():
    m = Model("llama.gguf", "llama")
    hidden, heads, kv, dim, ff = 256, 4, 2, 16, 32
    vocab = byte_level(m.writer, "llama-bpe", bos=0, add_bos=True)
    sizes(m.writer, hidden, 2, heads, kv, ff)
    m.writer.add_key_length(dim)
    m.writer.add_value_length(dim)
    m.writer.add_rope_dimension_count(dim)
    m.writer.add_rope_freq_base(500000.0)
    # Llama 3.1's factors, as llama.cpp's converter makes them.
    factor, low, high, original = 8.0, 1.0, 4.0, 8192
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * np.pi * 500000.0 ** (i / dim)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    m.add("rope_freqs.weight", None, np.array(factors, dtype=np.float32), None)
    m.matrix("token_embd.weight", "model.embed_tokens.weight", T.Q6_K, vocab, hidden)
    kinds = [
        dict(q=T.Q4_K, k=T.Q5_K, v=T.Q6_K, o=T.Q5_0, gate=T.Q4_0, up=T.Q4_1, down=T.Q8_0),
        dict(q=T.Q8_0, k=T.Q5_1, v=T.F16, o=T.BF16, gate=T.Q5_K, up=T.Q4_K, down=T.F32),
    ]
    for i, kind in enumerate(kinds):
        b, h = f"blk.{i}.", f"model.layers.{i}."
        m.vector(b + "attn_norm.weight", h + "input_layernorm.weight", hidden)
        m.matrix(b + "attn_q.weight", h + "self_attn.q_proj.weight", kind["q"], heads * dim, hidden, heads)
        m.matrix(b + "attn_k.weight", h + "self_attn.k_proj.weight", kind["k"], kv * dim, hidden, kv)
        m.matrix(b + "attn_v.weight", h + "self_attn.v_proj.weight", kind["v"], kv * dim, hidden)
        m.matrix(b + "attn_output.weight", h + "self_attn.o_proj.weight", kind["o"], hidden, heads * dim)
        m.vector(b + "ffn_norm.weight", h + "post_attention_layernorm.weight", hidden)
        m.matrix(b + "ffn_gate.weight", h + "mlp.gate_proj.weight", kind["gate"], ff, hidden)
        m.matrix(b + "ffn_up.weight", h + "mlp.up_proj.weight", kind["up"], ff, hidden)
        m.matrix(b + "ffn_down.weight", h + "mlp.down_proj.weight", kind["down"], hidden, ff)
    m.vector("output_norm.weight", "model.norm.weight", hidden)
    m.done()


def decoder(name, arch, tokenizer, *, heads=2, kv=1, permuted=False, biased=False, tied=True, qk_norm=False,
            gemma=False, fused=False, norms_behind=False, more=lambda w: None):  # fmt: skip
    """The other llama-like architectures, small and in f32."""
    m = Model(name, arch)
    hidden, dim, ff, layers = 16, 8, 24, 2
    vocab = tokenizer(m.writer)
    sizes(m.writer, hidden, layers, heads, kv, ff, epsilon=1e-6)
    m.writer.add_rope_freq_base(20000.0)
    more(m.writer)
    m.matrix("token_embd.weight", "model.embed_tokens.weight", T.F32, vocab, hidden)
    for i in range(layers):
        b, h = f"blk.{i}.", f"model.layers.{i}."
        if not norms_behind:
            m.vector(b + "attn_norm.weight", h + "input_layernorm.weight", hidden, gemma)
        if fused:
            m.matrix(b + "attn_qkv.weight", h + "self_attn.qkv_proj.weight", T.F32, (heads + 2 * kv) * dim, hidden)
        else:
            for part, n in (("q", heads), ("k", kv), ("v", kv)):
                permute = n if permuted and part != "v" else None
                m.matrix(b + f"attn_{part}.weight", h + f"self_attn.{part}_proj.weight", T.F32, n * dim, hidden, permute)
                if biased:
                    m.vector(b + f"attn_{part}.bias", h + f"self_attn.{part}_proj.bias", n * dim)
        if qk_norm:
            q_width, k_width = (heads * dim, kv * dim) if norms_behind else (dim, dim)
            m.vector(b + "attn_q_norm.weight", h + "self_attn.q_norm.weight", q_width, gemma)
            m.vector(b + "attn_k_norm.weight", h + "self_attn.k_norm.weight", k_width, gemma)
        m.matrix(b + "attn_output.weight", h + "self_attn.o_proj.weight", T.F32, hidden, heads * dim)
        if gemma:
            m.vector(b + "post_attention_norm.weight", h + "post_attention_layernorm.weight", hidden, True)
            m.vector(b + "ffn_norm.weight", h + "pre_feedforward_layernorm.weight", hidden, True)
            m.vector(b + "post_ffw_norm.weight", h + "post_feedforward_layernorm.weight", hidden, True)
        elif norms_behind:
            m.vector(b + "post_attention_norm.weight", h + "post_attention_layernorm.weight", hidden)
            m.vector(b + "post_ffw_norm.weight", h + "post_feedforward_layernorm.weight", hidden)
        else:
            m.vector(b + "ffn_norm.weight", h + "post_attention_layernorm.weight", hidden)
        if fused:
            m.matrix(b + "ffn_up.weight", h + "mlp.gate_up_proj.weight", T.F32, 2 * ff, hidden)
        else:
            m.matrix(b + "ffn_gate.weight", h + "mlp.gate_proj.weight", T.F32, ff, hidden)
            m.matrix(b + "ffn_up.weight", h + "mlp.up_proj.weight", T.F32, ff, hidden)
        m.matrix(b + "ffn_down.weight", h + "mlp.down_proj.weight", T.F32, hidden, ff)
    m.vector("output_norm.weight", "model.norm.weight", hidden, gemma)
    if not tied:
        m.matrix("output.weight", "lm_head.weight", T.F32, vocab, hidden)
    m.done()


def gpt2():
    m = Model("gpt2.gguf", "gpt2")
    hidden, layers, heads, context = 16, 2, 2, 32
    vocab = byte_level(m.writer, "gpt-2", bos=0, unused=0)
    m.writer.add_context_length(context)
    m.writer.add_embedding_length(hidden)
    m.writer.add_block_count(layers)
    m.writer.add_feed_forward_length(4 * hidden)
    m.writer.add_head_count(heads)
    m.writer.add_layer_norm_eps(1e-5)

    def conv1d(gguf_name, hf_name, rows, columns):
        value = floats(rows, columns)
        m.add(gguf_name + ".weight", hf_name + ".weight", value.T, value)
        m.vector(gguf_name + ".bias", hf_name + ".bias", columns)

    def norm(gguf_name, hf_name):
        m.vector(gguf_name + ".weight", hf_name + ".weight", hidden)
        m.vector(gguf_name + ".bias", hf_name + ".bias", hidden)

    embedding = floats(vocab, hidden)
    m.add("token_embd.weight", "transformer.wte.weight", embedding, embedding)
    m.add("output.weight", None, embedding, None)
    m.matrix("position_embd.weight", "transformer.wpe.weight", T.F32, context, hidden)
    for i in range(layers):
        b, h = f"blk.{i}.", f"transformer.h.{i}."
        norm(b + "attn_norm", h + "ln_1")
        conv1d(b + "attn_qkv", h + "attn.c_attn", hidden, 3 * hidden)
        conv1d(b + "attn_output", h + "attn.c_proj", hidden, hidden)
        norm(b + "ffn_norm", h + "ln_2")
        conv1d(b + "ffn_up", h + "mlp.c_fc", hidden, 4 * hidden)
        conv1d(b + "ffn_down", h + "mlp.c_proj", 4 * hidden, hidden)
    norm("output_norm", "transformer.ln_f")
    m.done()


llama()
gpt2()
decoder("qwen2.gguf", "qwen2", lambda w: byte_level(w, "qwen2", bos=0, add_bos=False), biased=True, tied=False)


def head_8(w):
    w.add_key_length(8)
    w.add_value_length(8)


decoder("qwen3.gguf", "qwen3", lambda w: byte_level(w, "qwen2", bos=0, add_bos=False), qk_norm=True, heads=4, more=head_8)
decoder("smollm3.gguf", "smollm3", lambda w: byte_level(w, "smaug-bpe", bos=0), permuted=True, more=lambda w: w.add_rope_dimension_count(8))


def window(w):
    head_8(w)
    w.add_sliding_window(8)


def gemma2_caps(w):
    window(w)
    w.add_attn_logit_softcapping(50.0)
    w.add_final_logit_softcapping(30.0)


decoder("gemma2.gguf", "gemma2", lambda w: sentencepiece(w, True), gemma=True, more=gemma2_caps)
decoder("gemma3.gguf", "gemma3", lambda w: sentencepiece(w, True), gemma=True, qk_norm=True, more=window)


def phi3_window(w):
    w.add_rope_dimension_count(8)
    w.add_sliding_window(12)


decoder("phi3.gguf", "phi3", sentencepiece, fused=True, tied=False, more=phi3_window)
decoder("spm-llama.gguf", "llama", sentencepiece, permuted=True, biased=False, tied=False, more=lambda w: w.add_rope_dimension_count(8))
decoder("olmo2.gguf", "olmo2", lambda w: byte_level(w, "dbrx", bos=0, add_bos=False), qk_norm=True, norms_behind=True, tied=False)

with open(os.path.join(HERE, "expected.json"), "w") as f:
    json.dump(expected, f, indent=1, ensure_ascii=True)
    f.write("\n")
