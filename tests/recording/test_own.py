"""Attention that modules compute themselves, outside of transformers' interface."""

import pytest
import torch
from recordings import record
from torch.nn.functional import scaled_dot_product_attention, softmax

from rolloutlib.recording.gradients import record_gradients, weigh_by_gradient


class ToyAttention(torch.nn.Module):
    """Attention of 2 heads, with a softmax of its own or by SDPA, in one of several layouts."""

    def __init__(self, how):
        super().__init__()
        self.how, self.project = how, torch.nn.Linear(8, 24)

    def forward(self, hidden_states):
        batch, length, _ = hidden_states.shape
        parts = self.project(hidden_states).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        bias = torch.arange(length).expand(length, -1) / 3
        query, key, value = parts.flatten(1, 2) if "one axis" in self.how else parts
        if "SDPA" in self.how:
            mask = None if "causal" in self.how else bias
            mixed = scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        elif "method" in self.how:
            mixed = (query @ key.mT / 2 + bias).softmax(-1) @ value
        else:
            mixed = softmax(query @ key.mT / 2 + bias, dim=-1) @ value
        return mixed.view(batch, 2, length, 4).transpose(1, 2).flatten(2)

    def expected(self, hidden_states):
        """The attention, from its definition."""
        batch, length, _ = hidden_states.shape
        parts = self.project(hidden_states).double().view(batch, length, 3, 2, 4)
        query, key, _ = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.mT / 2
        if "causal" in self.how:
            later = torch.ones(length, length).triu(1).bool()
            return scores.masked_fill(later, -torch.inf).softmax(-1)
        return (scores + torch.arange(length) / 3).softmax(-1)


LAYOUTS = ["softmax", "method", "softmax, one axis", "SDPA", "SDPA, one axis", "SDPA, causal"]


def toy(how):
    torch.manual_seed(0)
    return torch.nn.Sequential(ToyAttention(how), ToyAttention(how)).eval(), torch.randn(3, 5, 8)


@pytest.mark.parametrize("how", LAYOUTS)
@torch.no_grad()
def test_attention_outside_of_the_interface_is_recorded(how):
    model, inputs = toy(how)
    output = model(inputs)
    for _ in range(2):  # the second recording is as the first
        recording, again = record(model, {"input": inputs})
        torch.testing.assert_close(again, output, atol=0, rtol=0)
    first, second = recording[""]
    assert [first.name, second.name] == ["0", "1"] and first.shape == (3, 5, 5)
    expected = model[0].expected(inputs)
    torch.testing.assert_close(first.probabilities().double(), expected, atol=1e-6, rtol=0)
    assert not any("forward" in vars(module) for module in model)


@pytest.mark.parametrize("how", LAYOUTS)
def test_gradients_flow_through_attention_outside_of_the_interface(how):
    model, inputs = toy(how)
    with record_gradients(model) as recording:
        output = model(inputs)
    _, last = weigh_by_gradient(recording[""], output[0, 2].sum())
    value = model[1].project(model[0](inputs)).view(3, 5, 3, 2, 4)[0, :, 2]
    gradient = value.sum(-1).T  # of the target with respect to row 2 of each head
    attention = model[1].expected(model[0](inputs))[0, :, 2]
    expected = (attention * gradient).clamp(min=0).mean(0).float()
    torch.testing.assert_close(last.weights[0, 2], expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_a_module_that_attends_in_another_way_is_named():
    class StrangeAttention(torch.nn.Module):
        def forward(self, hidden_states):
            return softmax(hidden_states, dim=1) * hidden_states

    model = torch.nn.Sequential(ToyAttention("softmax"), StrangeAttention()).eval()
    with pytest.raises(RuntimeError, match="captured 1 attention modules, missing 1: 1"):
        record(model, {"input": torch.randn(1, 5, 8)})
