"""The words of scene captions as a CLIP tokenizer: byte pairs are merged until each word is one token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ocl.data.scenes import COLOURS, MATERIALS, SHAPES, SIZES, TEXTURES
from ocl.nn.hub import import_transformers

WORDS = tuple(
    dict.fromkeys(
        (*SHAPES, *COLOURS, *MATERIALS, *TEXTURES, *SIZES, "a", "an", "and", "on", "empty", "scene", "background", "patterned",
         "textured", "cluttered", ",", "-")
    )
)  # fmt: skip
START, END = "<|startoftext|>", "<|endoftext|>"


def scene_tokenizer(length: int, words: Iterable[str] = WORDS) -> Any:
    """A transformers CLIPTokenizer that pads and cuts to `length`; other words are spelt letter by letter."""
    transformers = import_transformers()
    letters = _letters()
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        parts = _apply(merges, [*word[:-1], f"{word[-1]}</w>"])
        while len(parts) > 1:  # new pairs rank last, so that words before this one stay whole
            merges[parts[0], parts[1]] = None
            pieces.append(parts[0] + parts[1])
            parts = [parts[0] + parts[1], *parts[2:]]
    vocabulary = {piece: number for number, piece in enumerate([*dict.fromkeys(pieces), START, END])}
    return transformers.CLIPTokenizer(
        vocab=vocabulary, merges=list(merges), model_max_length=length, bos_token=START, eos_token=END, unk_token=END, pad_token=END
    )


def _letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _apply(merges: dict[tuple[str, str], None], parts: list[str]) -> list[str]:
    """Byte-pair encoding: pairs in the order of `merges`, until none is left."""
    for first, second in merges:
        joined: list[str] = []
        for part in parts:
            if joined and (joined[-1], part) == (first, second):
                joined[-1] = first + second
            else:
                joined.append(part)
        parts = joined
    return parts
