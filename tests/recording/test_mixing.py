"""Layers without attention: the matrix that each mixes its tokens by."""

import inspect
import sys
from functools import partial, wraps

import pytest
import torch
from recordings import record
from reference import state_matrix
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForCausalLM, Lfm3VlVisionConfig
from transformers.models.lfm3_vl.modeling_lfm3_vl import Lfm3VlVisionShortConv

from rolloutlib import attention_received, carry_back, record_attention, rollout, rollout_rows
from rolloutlib.algorithm.layers import attends
from rolloutlib.recording import mixing, rules
from rolloutlib.recording.gradients import record_gradients, weigh_by_gradient
from rolloutlib.recording.mixing import RecordedConvolution, RecordedState

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "head_dim": 8}
TEXT = SIZES | {"num_hidden_layers": 4, "num_key_value_heads": 2, "vocab_size": 99}
DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
DELTA |= {"linear_key_head_dim": 8, "linear_value_head_dim": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
STATES = {
    "qwen3_5_text": DELTA,
    "qwen3_5_moe_text": DELTA | EXPERTS,
    "qwen3_next": DELTA | EXPERTS,
    "olmo_hybrid": DELTA | {"pad_token_id": 0},
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "mamba"], **MAMBA},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2},
    "jamba": {
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "mamba_d_state": 6,
        "mamba_dt_rank": 4,
        "num_experts": 1,
    },
    "kimi_linear": {"linear_num_heads": 4, "linear_head_dim": 8, "pad_token_id": 0},
    "bailing_hybrid": {"linear_num_heads": 4, "linear_head_dim": 8, "pad_token_id": 0},
}
for kind in ("kimi_linear", "bailing_hybrid"):
    STATES[kind] |= {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
    STATES[kind] |= {"n_group": 1, "topk_group": 1, "num_key_value_heads": 4, **EXPERTS}
    STATES[kind] |= {"n_routed_experts": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
OWN = {
    "recurrent_gemma": {"lru_width": 32, "pad_token_id": 0},
    "minimax": {"block_size": 16, "num_local_experts": 2},
}
CONVOLUTIONS = {
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"], **EXPERTS},
}
BESIDE = MAMBA | {"mamba_d_ssm": 64, "ssm_out_multiplier": 0.5, "attention_out_multiplier": 2.0}
TOKENS = torch.randint(3, 90, (2, 80), generator=torch.manual_seed(0))


def small(kind, make=AutoModel):
    """A random model of this kind, whose states remember more than a few tokens."""
    torch.manual_seed(0)
    settings = TEXT | (STATES | CONVOLUTIONS | OWN | {"falcon_h1": BESIDE})[kind]
    model = make.from_config(CONFIG_MAPPING[kind](**settings)).eval()
    for name, weight in model.named_parameters():
        if name.endswith("A_log"):
            torch.nn.init.uniform_(weight, -5, -1)
        elif name.endswith("conv.weight"):
            torch.nn.init.normal_(weight)
    return model


def watched_rules(model, monkeypatch):
    """The values and the output of every call of a rule, as it gets and returns them."""
    seen = []

    def watching(stock):
        @wraps(stock)
        def watch(**arguments):
            result = stock(**arguments)
            value = arguments["value" if "delta" in stock.__name__ else "hidden_states"]
            mixed = result[0] if isinstance(result, tuple) else result
            if stock.__name__ == "mamba_selective_scan":  # over channels, and with the gate behind
                mixed = stock(**arguments | {"z": None}).mT[..., None]
                value = value.mT[..., None]
            seen.append((value, mixed))
            return result

        return watch

    kinds = {type(module) for module in model.modules()}
    places = {kind.__module__: rules.rules_of(kind) for kind in kinds if rules.rules_of(kind)}
    for file, names in places.items():
        for name in names:
            monkeypatch.setattr(sys.modules[file], name, watching(names[name][name]))
    return seen


@pytest.mark.parametrize("kind", STATES)
@torch.no_grad()
def test_a_states_matrix_times_its_values_is_its_output(kind, monkeypatch):
    model = small(kind)
    expected = model(TOKENS, use_cache=False).last_hidden_state
    seen = watched_rules(model, monkeypatch)
    recording, output = record(model, {"input_ids": TOKENS, "use_cache": False})
    torch.testing.assert_close(output.last_hidden_state, expected, atol=0, rtol=0)
    layers = recording["language"]
    states = [layer for layer in layers if isinstance(layer, RecordedState)]
    assert len(states) == len(seen) == len(layers) - 1
    for layer, (value, mixed) in zip(states, seen, strict=True):
        matrix = layer.signed()
        assert matrix.shape == (2, value.shape[2], 80, 80)
        gathered = torch.einsum("bhqk,bkhw->bqhw", matrix, value)
        scale = mixed.abs().amax().item()
        torch.testing.assert_close(gathered, mixed, atol=1e-5 * scale, rtol=0)
    sums = rollout(layers).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@torch.no_grad()
def test_a_convolutions_matrix_times_its_values_is_its_output(kind):
    model, seen = small(kind), []
    for module in filter(rules.is_short_convolution, model.modules()):
        module.in_proj.register_forward_hook(lambda _, args, out: seen.append([out[..., 64:]]))
        module.out_proj.register_forward_pre_hook(lambda _, args: seen[-1].append(args[0]))
    recording, _ = record(model, {"input_ids": TOKENS, "use_cache": False})
    layers = [x for x in recording["language"] if isinstance(x, RecordedConvolution)]
    assert len(layers) == len(seen) == 3
    for layer, (value, mixed) in zip(layers, seen, strict=True):
        gathered = torch.einsum("bcqk,bkc->bqc", layer.signed(), value)
        scale = mixed.abs().amax().item()
        torch.testing.assert_close(gathered, mixed, atol=1e-5 * scale, rtol=0)


def watched_own(model):
    """The values and the output of every mixing that a layer computes itself."""
    seen = []

    def recurrent(unit, args, output):
        seen.append((args[0][..., None], output[..., None]))

    def projected(module, into, args, output):
        parts = module.act_fn(output).unflatten(-1, (module.num_attention_heads, -1))
        seen.append([parts.chunk(3, -1)[2]])

    def mixed(norm, args):
        seen[-1].append(args[0].view_as(seen[-1][0]))

    for module in model.modules():
        if rules.is_lightning(module):
            module.qkv_proj.register_forward_hook(partial(projected, module))
            module.norm.register_forward_pre_hook(mixed)
        elif rules.is_gated_recurrence(module):
            module.rg_lru.register_forward_hook(recurrent)
    return seen


@pytest.mark.parametrize(("kind", "states"), [("recurrent_gemma", 3), ("minimax", 2)])
@torch.no_grad()
def test_a_layer_that_mixes_in_its_own_code_has_a_matrix(kind, states):
    model = small(kind)
    expected = model(TOKENS, use_cache=False).last_hidden_state
    seen = watched_own(model)
    recording, output = record(model, {"input_ids": TOKENS, "use_cache": False})
    torch.testing.assert_close(output.last_hidden_state, expected, atol=0, rtol=0)
    layers = [x for x in recording["language"] if isinstance(x, RecordedState)]
    assert len(layers) == len(seen) == states
    for layer, (value, mixed) in zip(layers, seen, strict=True):
        gathered = torch.einsum("bhqk,bkhw->bqhw", layer.signed(), value)
        scale = mixed.abs().amax().item()
        torch.testing.assert_close(gathered, mixed, atol=1e-5 * scale, rtol=0)
    sums = rollout(recording["language"]).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert not any("_rnn_scan" in vars(module) for module in model.modules())


@torch.no_grad()
def test_a_recurrence_starts_anew_at_position_0():
    model = small("recurrent_gemma")
    packed = torch.cat([torch.arange(50), torch.arange(30)])[None].expand(2, -1)
    seen = watched_own(model)
    inputs = {"input_ids": TOKENS, "position_ids": packed, "use_cache": False}
    recording, _ = record(model, inputs)
    layer, (value, mixed) = recording["language"][0], seen[0]
    matrix = layer.signed()
    assert matrix[:, :, 50:, :50].abs().max() < 1e-9 < matrix[:, :, 50:, 50:].abs().max()
    gathered = torch.einsum("bhqk,bkhw->bqhw", matrix, value)
    torch.testing.assert_close(gathered, mixed, atol=1e-5, rtol=0)


def convolution_over_patches():
    """One in float64; the values and outputs that it will see; the noted layers; who notes them."""
    torch.manual_seed(0)
    config = Lfm3VlVisionConfig(hidden_size=8, spatial_merge_size=2, conv_kernel_size=3)
    module, seen, made = Lfm3VlVisionShortConv(config, 0).double(), [], []
    module.in_proj.register_forward_hook(lambda _, args, out: seen.append(out[:, 16:]))
    module.out_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    note = lambda _, make: not made.append(make("conv"))  # noqa: E731
    return module, seen, made, note


@torch.no_grad()
def test_a_convolution_over_patches_mixes_those_around_in_their_own_picture():
    module, seen, made, note = convolution_over_patches()
    with rules.own_rules_noted(module, note):
        module(torch.randn(24 + 16, 8).double(), [(1, 4, 6), (2, 2, 4)])
    [layer], (value, mixed) = made, seen
    matrix = layer.signed()
    torch.testing.assert_close(torch.einsum("cqk,kc->qc", matrix[0], value), mixed)
    pictures = torch.tensor([0] * 24 + [1] * 8 + [2] * 8)
    assert not matrix[:, :, pictures[:, None] != pictures].any()
    mixes = (matrix != 0).any(1)[0].sum(1)
    assert mixes.tolist() == layer.visible(torch.arange(40))[0].tolist()
    assert sorted(mixes[:24].tolist()) == [4] * 4 + [6] * 12 + [9] * 8
    rows = torch.tensor([3, 30])
    shares = (matrix.abs() / matrix.abs().sum(-1, keepdim=True)).mean(1)[:, rows]
    fused = layer.fused(rows, "mean")
    torch.testing.assert_close(fused, shares[:, :, : fused.shape[2]])
    assert not shares[:, :, fused.shape[2] :].any()


def test_gradients_of_a_convolution_over_patches():
    module, seen, made, note = convolution_over_patches()
    patches = torch.randn(24, 8).double()
    with rules.own_rules_noted(module, note, gradients=True):
        output = module(patches, [(1, 4, 6)])
    torch.testing.assert_close(output, module(patches, [(1, 4, 6)]))
    matrix, (value, mixed) = made[0].attention, seen[:2]
    to_matrix, to_mixed = torch.autograd.grad(output.square().sum(), [matrix, mixed])
    torch.testing.assert_close(to_matrix[0], torch.einsum("qc,kc->cqk", to_mixed, value))


def state(erases, tokens=150, heads=4, *, by_entry=False):
    """A state over more than two chunks, in float64."""
    torch.manual_seed(1)
    query, key = (torch.randn(2, tokens, heads // 2, 6).double() for _ in range(2))
    decay, write = -torch.rand(2, tokens, heads).double() / 9, torch.rand(2, tokens, heads).double()
    if by_entry and erases:
        decay = decay[..., None] * torch.rand(2, tokens, heads, 6).double()
    if not erases:
        rates = torch.rand(heads, 6).double() if by_entry else None
        skip = torch.rand(heads).double()
        return RecordedState("s", query, key, decay, write, skip=skip, rates=rates)
    return RecordedState("s", query, key, decay, write, erases=True, unit=True, scaling=0.4)


@pytest.mark.parametrize("by_entry", [True, False])
@pytest.mark.parametrize("erases", [True, False])
def test_rows_of_a_state_are_those_of_its_definition(erases, by_entry):
    layer = state(erases, by_entry=by_entry)
    whole, rows = torch.from_numpy(state_matrix(layer)), [3, 149, 64, -80]
    assert (whole < 0).any()
    torch.testing.assert_close(layer.signed(), whole)
    torch.testing.assert_close(layer.signed(rows), whole[:, :, rows])
    shares = whole.abs() / whole.abs().sum(-1, keepdim=True)
    torch.testing.assert_close(layer.probabilities(rows), shares[:, :, rows])
    relevance = torch.randn(2, 3, 150).double()
    torch.testing.assert_close(layer.carried(relevance), relevance[:, None] @ whole)
    some = torch.tensor([130, 5, 70])
    mean = shares.mean(1)
    for how, fused in {"mean": mean, "max": shares.amax(1), "min": shares.amin(1)}.items():
        torch.testing.assert_close(layer.fused(some, how), fused[:, some, :131])
    torch.testing.assert_close(carry_back([layer], relevance, residual=0), relevance @ mean)
    torch.testing.assert_close(attention_received([layer]), mean.sum(1))
    product = (mean + torch.eye(150)) / 2
    product = product @ product
    torch.testing.assert_close(rollout_rows([layer] * 2, [149]), product[:, [149]])


@torch.no_grad()
def test_attention_and_a_state_side_by_side_are_weighted_by_what_each_adds():
    model, added = small("falcon_h1"), []
    for layer in model.layers:
        for part, factor in ((layer.mamba, 0.5), (layer.self_attn, 2.0)):
            part.register_forward_hook(
                lambda _, args, out, by=factor: added.append(
                    by * (out[0] if isinstance(out, tuple) else out).norm(dim=-1)
                )
            )
    recording, _ = record(model, {"input_ids": TOKENS, "use_cache": False})
    layers, rows = recording["language"], torch.tensor([3, 70])
    assert [layer.name for layer in layers] == [f"layers.{number}" for number in range(4)]
    for number, layer in enumerate(layers):
        state, attention = layer.parts
        first, second = (lengths[:, rows, None] for lengths in added[2 * number :][:2])
        share = first / (first + second)
        expected = state.probabilities(rows).mean(1) * share
        expected += attention.probabilities(rows).mean(1) * (1 - share)
        torch.testing.assert_close(layer.probabilities(rows).mean(1), expected)
        torch.testing.assert_close(layer.fused(rows, "mean"), expected)
        assert (layer.signed() < 0).any()
    sums = rollout(layers).sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


class Largest(TorchDispatchMode):
    """The largest number of entries of any tensor that was made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_heads_are_fused_without_the_matrix_of_each(monkeypatch):
    monkeypatch.setattr(mixing, "ROOM", 20_000)
    layer = state(erases=True, tokens=300)
    with Largest() as largest:
        layer.fused(torch.arange(100, 200), "mean")
    assert largest.entries == 2 * 100 * 200  # the result; all heads would be four times as much


@pytest.mark.parametrize(
    "kind", ["qwen3_5_text", "nemotron_h", "lfm2", "jamba", "kimi_linear", *OWN]
)
@torch.no_grad()
def test_a_generation_is_joined_into_one_pass(kind):
    model = small(kind, AutoModelForCausalLM)
    with record_attention(model) as recording:
        ids = model.generate(TOKENS[:, :20], max_new_tokens=6, min_new_tokens=6, do_sample=False)
    whole, _ = record(model, {"input_ids": ids[:, :-1], "use_cache": False})
    for joined, layer in zip(recording["language"], whole["language"], strict=True):
        assert joined.shape == layer.shape == (2, 25, 25)
        torch.testing.assert_close(joined.probabilities(), layer.probabilities(), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_state_that_was_not_recorded_or_was_reordered_is_refused():
    model = small("qwen3_5_text", AutoModelForCausalLM)
    before = model(TOKENS[:, :20], use_cache=True).past_key_values
    with record_attention(model) as recording:
        model(TOKENS[:, 20:30], past_key_values=before)
    with pytest.raises(ValueError, match=r"layers.0.linear_attn began with a state"):
        recording["language"]
    with record_attention(model) as recording:
        cache = model(TOKENS[:, :20], use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        model(TOKENS[:, 20:21], past_key_values=cache)
    with pytest.raises(ValueError, match="not always from the state that it had left"):
        recording["language"]


@torch.no_grad()
def test_a_recording_inside_another_notes_the_same():
    model = small("qwen3_5_text")
    with record_attention(model) as outer:
        inner, _ = record(model, {"input_ids": TOKENS, "use_cache": False})
    assert outer.names == inner.names
    for one, other in zip(outer["language"], inner["language"], strict=True):
        torch.testing.assert_close(one.probabilities([-1]), other.probabilities([-1]))


GRADIENTS = ("qwen3_next", "bamba", "kimi_linear", "jamba", "recurrent_gemma", "minimax", "lfm2")


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_of_the_matrix_are_those_of_the_output(kind, monkeypatch):
    """dL/dM is dL/d(M · v) times v: of the layer's own output, before the gate behind it."""
    model = small(kind)
    tokens = {"input_ids": TOKENS[:, :64], "use_cache": False}  # as many as Jamba has channels
    with torch.no_grad():
        expected = model(**tokens).last_hidden_state
        recording, _ = record(model, tokens)
    with record_gradients(model) as explicit:
        output = model(**tokens).last_hidden_state
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    layers = [layer for layer in explicit["language"] if not attends(layer)]
    own = [layer for layer in recording["language"] if not attends(layer)]
    assert len(layers) == len(own) > 0
    weighted = weigh_by_gradient(layers, output[:, -1, 3].sum())

    nudged = nudges(model, monkeypatch)
    output = model(**tokens).last_hidden_state
    torch.testing.assert_close(output, expected, atol=0, rtol=0)
    gradients = torch.autograd.grad(output[:, -1, 3].sum(), nudged)
    for layer, weights, gradient in zip(own, weighted, gradients, strict=True):
        positive = (layer.signed() * gradient).clamp(min=0).mean(1)
        assert positive.amax() > 0
        torch.testing.assert_close(
            weights.weights, positive, atol=1e-5 * positive.amax(), rtol=1e-4
        )


def nudges(model, monkeypatch):
    """Zeros that are added to the M of each layer, in the order in which they run."""
    added, values = [], {}

    def nudge(value):
        batch, tokens, heads, _ = value.shape
        added.append(torch.zeros(batch, heads, tokens, tokens, requires_grad=True))
        return torch.einsum("bhqk,bkhw->bqhw", added[-1], value)

    def nudging(stock):
        @wraps(stock)
        def nudged(*args, **others):
            given = inspect.signature(stock).bind(*args, **others).arguments
            output, *after = result = stock(*args, **others)
            value = given["value" if "delta" in stock.__name__ else "hidden_states"]
            if stock.__name__ == "mamba_selective_scan":  # over channels, with the gate behind
                gate = torch.nn.functional.silu(given["z"])
                return result + nudge(value.mT[..., None])[..., 0].mT * gate
            if isinstance(result, tuple):
                return output + nudge(value), *after
            return result + nudge(value)

        return nudged

    def projected(module, into, args, output):
        if rules.is_lightning(module):
            heads = module.act_fn(output).unflatten(-1, (module.num_attention_heads, -1))
            values[module] = heads.chunk(3, -1)[2]
        else:
            values[module] = output.chunk(3, -1)[2][..., None]

    def mixed(module, behind, args):
        return args[0] + nudge(values[module]).flatten(2)

    kinds = {type(module) for module in model.modules()}
    places = {kind.__module__: rules.rules_of(kind) for kind in kinds if rules.rules_of(kind)}
    for file, names in places.items():
        for name in names:
            monkeypatch.setattr(sys.modules[file], name, nudging(names[name][name]))
    for module in model.modules():
        if rules.is_gated_recurrence(module):
            module.rg_lru.register_forward_hook(
                lambda unit, args, output: output + nudge(args[0][..., None])[..., 0]
            )
        elif rules.is_lightning(module):
            module.qkv_proj.register_forward_hook(partial(projected, module))
            module.norm.register_forward_pre_hook(partial(mixed, module))
        elif rules.is_short_convolution(module):
            module.in_proj.register_forward_hook(partial(projected, module))
            module.out_proj.register_forward_pre_hook(partial(mixed, module))
    return added


def test_gradients_of_a_pass_that_goes_on_from_a_state_are_refused():
    model = small("jamba", AutoModelForCausalLM)
    with (
        pytest.raises(ValueError, match=r"JambaMambaMixer goes on from a state: .* cache"),
        record_gradients(model),
    ):
        kept = model(TOKENS[:, :9], use_cache=True).past_key_values
        model(TOKENS[:, 9:10], past_key_values=kept)


@torch.no_grad()
def test_another_rule_of_the_same_name_is_refused(monkeypatch):
    model = small("qwen3_5_text")
    file = sys.modules[type(model).__module__]
    stock = file.torch_chunk_gated_delta_rule

    @wraps(stock)
    def twice(*args, **kwargs):
        mixed, kept = stock(*args, **kwargs)
        return 2 * mixed, kept

    monkeypatch.setattr(file, "torch_chunk_gated_delta_rule", twice)
    with pytest.raises(RuntimeError, match="GatedDeltaNet does not mix its values by the rule"):
        record(model, {"input_ids": TOKENS, "use_cache": False})
    assert file.torch_chunk_gated_delta_rule is twice
