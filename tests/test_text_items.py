"""Corpus recipes become the same documents every time, in the voices they ask for."""

import pytest

from tinywave.data.kokoro_voice import TEST_VOICES, TRAIN_VOICES
from tinywave.data.story_language import split_of
from tinywave.data.text_items import book_sentences, text_items
from tinywave.stages.parsing import load_recipe

RECIPE = {
    "seed": 4,
    "documents": [
        {"domain": "story", "split": "train", "count": 6, "voices": "hibari", "styles": {"base": 1, "sad": 1}},
        {"domain": "facts", "split": "validation", "count": 2, "voices": "kokoro-train"},
        {"domain": "book", "split": "test", "count": 12, "voices": "kokoro-test"},
    ],
}


def test_documents_are_fixed_by_the_recipe():
    items = text_items(RECIPE)
    assert items == text_items(RECIPE)
    assert items != text_items({**RECIPE, "seed": 5})
    assert len({item.id for item in items}) == len(items) == 20
    assert {split_of(sentence) for item in items for sentence in item.sentences if item.split == "test"} == {"test"}


def test_voices_take_turns_and_styles_are_drawn():
    items = text_items(RECIPE)
    assert [item.voice for item in items[8:18]] == list(TEST_VOICES)
    assert {item.style for item in items[:6]} <= {"base", "sad"}
    assert {item.text_licence for item in items[8:]} == {"public domain"}


def test_mixed_voices_are_pairs_of_training_voices_with_one_accent():
    documents = [{"domain": "story", "split": "train", "count": 97, "voices": "kokoro-mixed"}]
    voices = [item.voice for item in text_items({"seed": 0, "documents": documents})]
    pairs = [voice.split("+") for voice in voices]
    assert len(set(voices)) == 97 == 14 * 13 // 2 + 4 * 3 // 2  # pairs of American and of British voices
    assert all(first != second and first[0] == second[0] for first, second in pairs)
    assert {name for pair in pairs for name in pair} == set(TRAIN_VOICES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"voices": "choir"}, "Unknown voices 'choir'"),
        ({"domain": "poem"}, "Unknown domain 'poem'"),
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
    ],
)
def test_a_wrong_entry_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        text_items({"seed": 0, "documents": [{**RECIPE["documents"][0], **change}]})


def test_book_sentences_of_the_splits_are_disjoint():
    train, test = set(book_sentences("train")), set(book_sentences("test"))
    assert len(train) > 1000 and len(test) > 100 and not train & test


@pytest.mark.parametrize("name", ["nano/corpus", "nano/quickstart"])
def test_packaged_recipes_are_valid(name):
    recipe = load_recipe(name)
    assert text_items(recipe.get("corpus", recipe))


def test_recipe_errors_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recipe 'nowhere'"):
        load_recipe("nowhere")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ValueError, match="holds list; expected a mapping"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match="is not a YAML file"):
        load_recipe(tmp_path / "broken.yaml")
