"""Trains two tiny tokenizers of the two kinds that models have, with the
special tokens of many models, and writes them and some encodings of theirs.

    python make_tokenizers.py

`bytes.json` is a byte-level BPE with Qwen2's pre-tokenizer; `pieces.json` is a
BPE in the manner of SentencePiece (Llama 2): a blank put before the text,
blanks written as U+2581, bytes for unknown characters, BOS added.
`encodings.json` holds texts with their ids by the Python package, whose
pattern engine is Oniguruma.
"""

import json
import pathlib

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = [
    "<unk>", "<s>", "</s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>", "<eos>",
    "<start_of_turn>", "<end_of_turn>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>",
    "[INST]", "[/INST]",
]
ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>"]

CORPUS = """
Is the tide in at Brest? It is in. The harbour master writes the hour of high water and the
height of the tide on the board. Answer: Yes, it is. Answer: No, it is not. The system, the user
and the assistant take turns. The user asks a question and the assistant answers the question.
Be brief. Use tools. You are a helpful assistant. Two and two are four. Count again.

The lamp on the quay is lit before dusk.  The boats come in with the flood.

    for port in ports:
        print(port, 3.2, "m")

### User:
What is the height?

### Assistant:
It is 3.2 m.
""".splitlines(keepends=True) * 20

QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # As models ship it, with the offsets trimmed.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator("".join(CORPUS).split("\n\n\n") + ["\n\n", " \n\n"] * 50, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return tokenizer


def pieces():
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
        max_token_length=12,
    )
    tokenizer.train_from_iterator([word for line in CORPUS for word in line.split()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    # The bytes were made special to get their ids; they are ordinary tokens.
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ADDED])
    return tokenizer


TEXTS = [
    "Is the tide in?",
    "  two  blanks\n\n\nand lines \n",
    "it's 3.2 m, I'LL say: \"naïve\" é\u0301 漢字 🙂👩‍👩‍👧 \u00a0\t.",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n",
    "<s>[INST] hi [/INST] ho</s>",
    "",
    " ",
    "\n",
    "12345 67\r\n8 ﬁ Å ١٢٣",
    "<think>\nTwo.\n</think>\n\n4",
    "    for port in ports:\n        print(port)",
]

here = pathlib.Path(__file__).parent
encodings = []
for name, tokenizer in (("bytes", byte_level()), ("pieces", pieces())):
    document = json.loads(tokenizer.to_str())
    (here / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n")
    tokenizer = Tokenizer.from_file(str(here / f"{name}.json"))
    for text in TEXTS:
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        full = tokenizer.encode(text, add_special_tokens=True).ids
        encodings.append(
            {
                "tokenizer": name,
                "text": text,
                "ids": bare,
                "with_special": full,
                "decoded": tokenizer.decode(bare, skip_special_tokens=False),
                "decoded_plain": tokenizer.decode(bare, skip_special_tokens=True),
            }
        )
document = {"tokenizers": tokenizers.__version__, "cases": encodings}
(here / "encodings.json").write_text(json.dumps(document, ensure_ascii=False, indent=0) + "\n")
