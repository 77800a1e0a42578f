import numpy as np
import pytest
import torch
from small_llava import WORDS, small_llava

from rolloutlib.recording.gradients import (
    WeightedLayer,
    gradient_rollout,
    gradient_rollout_rows,
    record_gradients,
    weigh_by_gradient,
)
from rolloutlib.tiny.refiner import RefinerConfig, TemporalRefiner
from rolloutlib.tiny.tracks import make_tracks


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    image = torch.full((16,), WORDS.index("<image>"))
    ids = torch.cat([torch.tensor([4, 5]), image, torch.tensor([7, 8, 9])])[None]
    return {"input_ids": ids, "pixel_values": torch.randn(1, 3, 56, 56, dtype=torch.float64)}


@pytest.fixture
def llava():
    return small_llava(dtype=torch.float64)


def eager_reference(model, inputs, pick):
    """E_h[(∇A ⊙ A)⁺] by autograd through transformers' own eager attention.

    Everything is float64 except the eager softmax, which is always float32.
    """
    model.set_attn_implementation("eager")
    output = model(**inputs, output_attentions=True)
    gradients = torch.autograd.grad(pick(output.logits), output.attentions)
    model.set_attn_implementation("sdpa")
    return [
        (attention * gradient).clamp(min=0).mean(1).detach().numpy()
        for attention, gradient in zip(output.attentions, gradients, strict=True)
    ]


def recorded(model, inputs, pick, part="language"):
    with record_gradients(model) as recording:
        logits = model(**inputs, use_cache=False).logits
    return weigh_by_gradient(recording[part], pick(logits))


def pick(logits):
    return logits[0, -1, 3]


def test_weights_equal_those_of_eager_attention(llava, inputs):
    expected = eager_reference(llava, inputs, pick)
    layers = recorded(llava, inputs, pick)
    assert [layer.name for layer in layers] == [
        f"model.language_model.layers.{n}.self_attn" for n in range(4)
    ]
    for layer, weights in zip(layers, expected, strict=True):
        np.testing.assert_allclose(layer.weights, weights, rtol=1e-4, atol=1e-9)
        assert (layer.weights > 0).any()


def test_rows_equal_the_product_written_out(llava, inputs):
    size = inputs["input_ids"].shape[1]
    product = np.eye(size)
    for weights in eager_reference(llava, inputs, pick):
        product = product + weights[0] @ product
    rows = gradient_rollout_rows(recorded(llava, inputs, pick), [size - 1, 3])
    np.testing.assert_allclose(rows[0], product[[size - 1, 3]], rtol=1e-6, atol=1e-14)


def test_the_vision_tower_is_reached_and_its_unused_last_layer_gets_zeros(llava, inputs):
    *used, unused = recorded(llava, inputs, pick, part="vision")
    assert all((layer.weights > 0).any() for layer in used)
    assert (unused.weights == 0).all()
    relevance = torch.rand(1, 2, 17, dtype=torch.float64)
    product = np.eye(17)
    for layer in used:
        product = product + layer.weights[0].numpy() @ product
    np.testing.assert_allclose(
        gradient_rollout(used, relevance)[0], relevance[0].numpy() @ product, rtol=1e-9
    )


def test_frozen_weights_have_the_same_gradients_and_the_model_keeps_none(llava, inputs):
    expected = recorded(llava, inputs, pick)
    assert all(parameter.grad is None for parameter in llava.parameters())
    frozen = recorded(llava.requires_grad_(False), inputs, pick)
    for layer, other in zip(frozen, expected, strict=True):
        torch.testing.assert_close(layer.weights, other.weights)


def test_the_model_answers_as_before(llava, inputs):
    with record_gradients(llava):
        open_logits = llava(**inputs).logits
    torch.testing.assert_close(open_logits, llava(**inputs).logits)


def test_multihead_attention_by_a_nudge_of_its_weights():
    """A weight's gradient is what the output gains if slightly more of its value row is added."""
    refiner = TemporalRefiner(RefinerConfig(depth=2, width=16)).double().eval()
    tracks = make_tracks(0, clips=1, frames=5)
    inputs = tracks.observations.double(), tracks.pictures.double()
    with record_gradients(refiner) as recording:
        target = refiner(*inputs)[-1].colour[0, 2, 1, 0]
    layers = recording["time_attention"]
    assert layers[0].shape == (3, 5, 5)
    attention = layers[0].attention
    [gradient] = torch.autograd.grad(target, [attention], retain_graph=True)
    number = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    where = (1 * 4 + 2, 3, 0)  # instance 1, head 2, query 3, key 0

    def nudged(matrices, *args, **kwargs):
        result = softmax(matrices, *args, **kwargs)
        if result.shape == attention.shape and not done:
            done.append(True)
            change = torch.zeros_like(result)
            change[where] = 1
            result = result + number * change
        return result

    done, softmax = [], torch.nn.functional.softmax
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", nudged)
        with record_gradients(refiner):
            again = refiner(*inputs)[-1].colour[0, 2, 1, 0]
    [expected] = torch.autograd.grad(again, [number])
    torch.testing.assert_close(gradient[where], expected)
    weights = weigh_by_gradient(layers, target)[0].weights
    own = (attention.detach() * gradient).clamp(min=0)[4:8].mean(0)
    torch.testing.assert_close(weights[1], own)


def test_layers_without_weight_leave_the_rows_as_they_are():
    layers = [WeightedLayer("", torch.zeros(1, 4, 4))] * 3
    torch.testing.assert_close(gradient_rollout_rows(layers, [2])[0, 0], torch.eye(4)[2])


def test_no_grad_is_refused(llava, inputs):
    with pytest.raises(ValueError, match="gradients to be on"), record_gradients(llava):
        with torch.no_grad():
            llava(**inputs)
