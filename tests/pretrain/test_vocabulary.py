"""The tokenizer of scene captions."""

import pytest

from ocl.data import Scenes

pytest.importorskip("transformers", reason='pip install "ocl[diffusion]" to test generators of scenes')
from ocl.pretrain.vocabulary import END, START, WORDS, scene_tokenizer


def test_every_word_is_one_token():
    tokenizer = scene_tokenizer(64)
    assert [word for word in WORDS if len(tokenizer.tokenize(word)) != 1] == []


@pytest.mark.parametrize("level", ["plain", "textured", "cluttered"])
@pytest.mark.parametrize("split", ["train", "ood"])
def test_captions_are_made_of_known_words(level, split):
    tokenizer, scenes = scene_tokenizer(200), Scenes(level, split)
    for index in range(30):
        caption = scenes[index].caption
        words = caption.replace(",", " ,").replace("-", " - ").split()
        assert tokenizer.tokenize(caption) == [f"{word}</w>" for word in words]


def test_other_words_are_spelt_and_lengths_are_kept():
    tokenizer = scene_tokenizer(12)
    assert tokenizer.decode(tokenizer("a zebra").input_ids, skip_special_tokens=True).strip() == "a zebra"
    padded = tokenizer("", padding="max_length", max_length=12).input_ids
    assert tokenizer.convert_ids_to_tokens(padded) == [START, *[END] * 11]


def test_a_saved_tokenizer_is_the_same(tmp_path):
    import transformers

    tokenizer, caption = scene_tokenizer(64), Scenes("textured")[0].caption
    tokenizer.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(caption).input_ids == tokenizer(caption).input_ids
