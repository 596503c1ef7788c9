"""Pictures with text about them, from wherever they lie, and what a PaliGemma is asked of them.

jsonl, tars, hugging_face    a source: examples by their number
example                      what an example holds, wherever it comes from
formats                      an example → a prompt and its answer, in PaliGemma's grammar
mixture                      sources with weights → one endless stream
"""
