"""Token ids and text in pieces: tokenised so that the parts are the whole, read and written without holding either.

for ids in encode_pieces(tokenizer, read_pieces("book.txt")): ...
for text in written(tokenizer, generated_ids): print(text, end="")
"""

from .corpora import load_text, tokenize_documents
from .detokenizer import Detokenizer, written
from .files import read_pieces
from .held_back import overlap, refuse_shared
from .joins import ids_after, ids_before, ids_of_parts
from .pieces import around, encode_pieces, lines_of, with_question
from .repeats import drop_repeated, paragraphs_of
from .tokens import bos_prefix, encode, left_pad, prompt_inputs, render

__all__ = [
    "Detokenizer",
    "around",
    "bos_prefix",
    "drop_repeated",
    "encode",
    "encode_pieces",
    "ids_after",
    "ids_before",
    "ids_of_parts",
    "left_pad",
    "lines_of",
    "load_text",
    "overlap",
    "paragraphs_of",
    "prompt_inputs",
    "read_pieces",
    "refuse_shared",
    "render",
    "tokenize_documents",
    "with_question",
    "written",
]
