"""What is timed: the contenders of each workload, and the answer that all should give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product as combinations

import numpy as np
import torch
import torch.nn.functional as F
from reference import products, state_matrix, transition

from benchmarks import contenders
from rolloutlib import attention_received, carry_back, rollout, rollout_rows
from rolloutlib.algorithm.layers import DenseLayer, row_tiles
from rolloutlib.algorithm.transition import Product, Settings, Transition
from rolloutlib.recording.recorded import Call
from rolloutlib.video import spatial_rollout

OURS = "rolloutlib"
HEADS = "every head"
LARGE = "answer of LLaVA-1.5-7B"
LOUD = "scores up to 300"
ALONE = "exp(QKᵀ) alone"  # which cannot be avoided, even if all else took no time
LIMIT = ", machine's limit"  # after the name of a measure: the limit that no code could beat


@dataclass
class Ratio:
    """One line of the table: how two contenders compare, and the target.

    measure: what the number means.  over, under: the contenders divided; of several, the best one.
    Beside the contenders there are "limit", the time of reading the input once and of the products
    at the speed of sgemm, and "MB".  target: at least this where `larger` is better, else at most
    this; 0 where there is none.  memory: compare memory and not time.  beyond: the contender whose
    memory is not counted.
    """

    measure: str
    over: str | tuple[str, ...]
    under: str
    target: float = 0
    larger: bool = True
    memory: bool = False
    beyond: str | None = None


@dataclass
class Workload:
    """Contenders that get the same input, the float64 answers, and the lines of the table.

    expected: the float64 answers of `OURS` and of other contenders.  reading: reads the input once
    and selects thresholds, as every contender must; None where it is small beside the rest.
    work: floating point operations of `OURS` that are products, or 0.  tolerance: of the agreement.
    threads: of torch, for all contenders.
    """

    name: str
    contenders: dict[str, Callable]
    expected: dict[str, Callable]
    ratios: list[Ratio]
    reading: Callable | None = None
    work: float = 0.0
    rounds: int = 3
    tolerance: float = 1e-5
    threads: int = 1


def softmax_layers(layers: int, *shape: int) -> list[torch.Tensor]:
    """Attention of random scores, some of them large."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(*shape, generator=generator) for _ in range(layers)]
    return [(score * 3).softmax(-1) for score in scores]


def recorded_layers(
    layers: int,
    heads: int,
    size: int,
    width: int,
    *,
    causal: bool,
    loud: float = 0.0,
    dtype: torch.dtype = torch.float32,
    key_heads: int | None = None,
    device: str = "cpu",
) -> tuple[list[Call], list[torch.Tensor]]:
    """Layers as a recording keeps them, and their values. `loud`: the size of the largest score."""
    generator, recorded, values = torch.Generator().manual_seed(0), [], []
    for _ in range(layers):
        query = torch.randn(1, heads, size, width, generator=generator).to(device, dtype)
        shape = 2, 1, key_heads or heads, size, width
        key, value = torch.randn(shape, generator=generator).to(device, dtype)
        largest = float((query[0, 0] @ key[0, 0].mT).abs().max())
        scaling = loud / largest if loud else width**-0.5
        ending = "_for_cpu" if device == "cpu" else ""
        flash = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention{ending}")
        every = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
        known = flash(query, *every, 0.0, causal, scale=scaling)[1]
        recorded.append(Call(query, key, None, causal, scaling, logsumexp=known))
        values.append(value)
    return recorded, values


def sdpa_pass(layers: list[Call], values: list[torch.Tensor]) -> None:
    """The cost of attention itself in these layers."""
    for layer, value in zip(layers, values, strict=True):
        F.scaled_dot_product_attention(
            layer.query,
            layer.key,
            value,
            is_causal=layer.causal,
            scale=layer.scaling,
            enable_gqa=layer.sharing > 1,
        )


def float64_layers(layers: list[Call]) -> list[np.ndarray]:
    """Head-fused attention in float64, from its definition, one head in memory at a time."""
    fused = []
    for layer in layers:
        total, size = 0, layer.shape[1]
        keys = layer.key[0].double().repeat_interleave(layer.sharing, 0)
        for query, key in zip(layer.query[0].double(), keys, strict=True):
            scores = query @ key.mT * layer.scaling
            if layer.causal:
                scores.masked_fill_(torch.ones(size, size).triu(1).bool(), -torch.inf)
            total = total + scores.softmax(-1)
        fused.append((total / layer.query.shape[1]).cpu().numpy())
    return fused


def float64_carried(fused: list[np.ndarray], relevance: np.ndarray) -> np.ndarray:
    """Relevance of the last layer's tokens, carried back through every layer, in float64."""
    for layer in reversed(fused):
        relevance = relevance @ transition(layer[None])
    return relevance


def float64_rows(layers: list[Call], rows: Sequence[int]) -> np.ndarray:
    """Rows of the whole product in float64."""
    return float64_carried(float64_layers(layers), np.eye(layers[0].shape[1])[rows])


def float64_received(layers: list[Call]) -> np.ndarray:
    """Attention received in float64, from its definition, some rows of a head in memory."""
    total = 0
    for layer in layers:
        for query, key in zip(layer.query[0].double(), layer.key[0].double(), strict=True):
            for some in query.split(1024):
                total = total + (some @ key.mT).mul_(layer.scaling).softmax(-1).sum(0)
    return (total / (len(layers) * layers[0].query.shape[1])).numpy()


# The workloads


def teaching(small: bool) -> Workload:
    from rolloutlib.teaching import AttentionRollout  # with plotting, which takes seconds

    layers = softmax_layers(3, 2, 40, 40) if small else softmax_layers(24, 16, 433, 433)
    plain = {"discard_ratio": 0.1}
    answer = cache(lambda: products([layer.numpy() for layer in layers], **plain)[-1])
    return Workload(
        f"`AttentionRollout`, discard 0.1, {_sizes(layers)}",
        {
            "sort": lambda: contenders.teaching_class(layers, 0.1),
            OURS: lambda: AttentionRollout(discard_ratio=0.1).compute_rollout(layers),
            "one row": lambda: rollout_rows(layers, [0], **plain),
        },
        {OURS: answer, "one row": lambda: answer()[:1]},
        [
            Ratio("times faster than by sorting, whole matrix", "sort", OURS, 9),
            Ratio("times faster than by sorting, CLS row", "sort", "one row", 18),
            *limits("times faster than by sorting", "sort", "CLS row"),
        ],
        reading=lambda: [_read_and_select(layer) for layer in layers],
        work=_products(layers),
    )


def attention_list(small: bool) -> Workload:
    layers = softmax_layers(3, 2, 50, 50) if small else softmax_layers(24, 16, 577, 577)
    peers = contenders.installed_peers(layers)
    fastest = [
        Ratio("times faster than the fastest peer, whole matrix", tuple(peers), OURS, 1.5),
        Ratio("times faster than the fastest peer, one row", tuple(peers), "one row", 5),
        *limits("times faster than the fastest peer", tuple(peers)),
    ]
    answer = cache(lambda: products([layer.numpy() for layer in layers])[-1])
    largest = {"head_fusion": "max"}
    return Workload(
        f"list of attention in, rollout out, no discard, {_sizes(layers)}",
        peers
        | {
            "plain": lambda: contenders.teaching_class(layers, 0.0),
            OURS: lambda: rollout(layers),
            "one row": lambda: rollout_rows(layers, [0]),
            "maximum of heads": lambda: rollout(layers, **largest),
        },
        {
            OURS: answer,
            "one row": lambda: answer()[:1],
            "maximum of heads": lambda: products([x.numpy() for x in layers], **largest)[-1],
        },
        [
            *(fastest if peers else []),
            *(Ratio(f"times faster than {peer}, whole matrix", peer, OURS) for peer in peers),
            Ratio("times faster than plain code, whole matrix", "plain", OURS),
            Ratio("maximum ÷ mean, kept attention", "maximum of heads", OURS, 1.05, larger=False),
        ],
        reading=lambda: [layer.sum() for layer in layers],
        work=_products(layers),
    )


def video(small: bool) -> Workload:
    shape = (2, 2, 40, 40) if small else (4, 16, 433, 433)
    layers = [layer.numpy() for layer in softmax_layers(3 if small else 24, *shape)]
    answer = cache(
        lambda: np.stack([products([x[frame] for x in layers])[-1] for frame in range(shape[0])])
    )
    return Workload(
        f"spatial video rollout, NumPy in, {_sizes(layers)}",
        {
            "plain NumPy": lambda: contenders.video_procedure(layers),
            OURS: lambda: spatial_rollout(layers),
            "one row": lambda: rollout_rows(layers, [0]),
        },
        {OURS: answer, "one row": lambda: answer()[:, :1]},
        [
            Ratio("times faster than NumPy, whole matrix", "plain NumPy", OURS, 2),
            Ratio("times faster than NumPy, CLS row", "plain NumPy", "one row", 5),
            *limits("times faster than NumPy", "plain NumPy", "CLS row"),
            Ratio("times less memory than NumPy", "plain NumPy", OURS, 15, memory=True),
        ],
        reading=lambda: [torch.from_numpy(layer).sum() for layer in layers],
        work=shape[0] * _products(layers),
    )


def rows(small: bool, model: str, layers: int, heads: int, size: int, width: int) -> Workload:
    if small:
        layers, heads, size, width = 3, 2, 60, 8
    recorded, values = recorded_layers(layers, heads, size, width, causal=True)
    loud, _ = recorded_layers(layers, heads, size, width, causal=True, loud=300)
    wanted = list(range(size - 32, size))
    return Workload(
        f"32 generated tokens' rows, causal, S={size} ({model}: {layers} layers, {heads} heads)",
        {
            "SDPA": lambda: sdpa_pass(recorded, values),
            ALONE: lambda: contenders.exponentials_alone(recorded[:-1], 4, 128, 640),
            "eager and dense": lambda: contenders.dense_product(
                contenders.eager_attention(recorded), wanted
            ),
            OURS: lambda: rollout_rows(recorded, wanted)[0],
            "maximum of heads": lambda: rollout_rows(recorded, wanted, head_fusion="max"),
            LOUD: lambda: rollout_rows(loud, wanted)[0],
        },
        {
            OURS: lambda: float64_rows(recorded, wanted),
            LOUD: lambda: float64_rows(loud, wanted),
        },
        [
            Ratio("times one SDPA pass", OURS, "SDPA", 0.45, larger=False),
            Ratio(f"times one SDPA pass{LIMIT}", ALONE, "SDPA"),
            Ratio("times faster than eager + dense", "eager and dense", OURS, 5),
            Ratio("times less memory than eager + dense", "eager and dense", OURS, 20, memory=True),
            Ratio("MB of scratch", OURS, "MB", 4, larger=False, memory=True),
            Ratio("maximum ÷ mean of heads", "maximum of heads", OURS, 1.05, larger=False),
            Ratio("scores up to 300 ÷ common ones", LOUD, OURS),
        ],
        work=float(layers - 1) * heads * width * size**2,
        rounds=3 if size > 2000 else 5,
    )


def one_layer(small: bool, size: int, threads: int) -> Workload:
    """Each way through layers of 16 heads, against one SDPA pass with as many threads."""
    layers = 2 if small or size > 2000 else 8  # short ones are over too soon to be measured
    size, wanted = (40 if small else size), 16
    relevance = torch.rand(1, wanted, size, generator=torch.Generator().manual_seed(1))
    compared, expected, ratios = {}, {}, []
    for causal, dtype in combinations((True, False), (torch.float32, torch.bfloat16)):
        kind = f"{'causal' if causal else 'both ways'}, {str(dtype).removeprefix('torch.')}"
        given, values = recorded_layers(layers, 16, size, 64, causal=causal, dtype=dtype)
        fused = cache(partial(float64_layers, given))
        compared[f"SDPA, {kind}"] = partial(sdpa_pass, given, values)
        ways = {
            "carry_back": (
                lambda given=given: carry_back(given, relevance)[0],
                lambda fused=fused: float64_carried(fused(), relevance[0].double().numpy()),
            ),
            "rollout_rows": (
                lambda given=given: rollout_rows(given, range(size - wanted, size))[0],
                lambda fused=fused: float64_carried(fused(), np.eye(size)[-wanted:]),
            ),
            "attention_received": (
                lambda given=given: attention_received(given)[0],
                lambda fused=fused: np.mean(fused(), 0).sum(0),
            ),
        }
        for way, (ours, answer) in ways.items():
            name = f"{way}, {kind}"
            compared[name], expected[name] = ours, answer
            ratios.append(Ratio(f"{name} ÷ SDPA", name, f"SDPA, {kind}", 0.8, larger=False))
    main = "rollout_rows, causal, float32"
    ratios.append(Ratio(f"{main} ÷ SDPA{LIMIT}", "limit", "SDPA, causal, float32"))
    return Workload(
        f"{layers} layers, 16 heads x 64, S={size}, {threads} threads",
        compared | {OURS: compared[main]},
        expected | {OURS: expected[main]},
        ratios,
        work=layers * 16 * 64 * float(size) ** 2,  # QKᵀ of all layers, half of each
        tolerance=1e-4,  # the kernel's own sums of bfloat16 products are off by some 1e-5
        threads=threads,
    )


def long_sequence(small: bool) -> Workload:
    """Llama's heads, a long prompt."""
    layers, heads, size = (2, 4, 60) if small else (4, 32, 16_384)
    shape = {"causal": True, "key_heads": heads // 4, "dtype": torch.bfloat16}
    one = recorded_layers(1, heads, size, 128, **shape)  # each would take as long as it is timed
    recorded, values = (found * layers for found in one)
    wanted = range(size - 16, size)
    few, _ = recorded_layers(2, heads, min(size, 2048), 128, **shape)
    shown = f"{layers} layers, {heads} / {heads // 4} heads x 128, S={size}, bfloat16"
    return Workload(
        f"16 rows of Llama, {shown}",
        {
            "SDPA": lambda: sdpa_pass(recorded, values),
            OURS: lambda: rollout_rows(recorded, wanted)[0].sum(-1),
            "shorter": lambda: rollout_rows(few, range(16))[0],
        },
        # Float64 rows of the long one would take minutes: those of a shorter one are compared.
        {OURS: lambda: np.ones(len(wanted)), "shorter": lambda: float64_rows(few, range(16))},
        [
            Ratio("times one SDPA pass", OURS, "SDPA", 0.8, larger=False),
            Ratio("MB of scratch", OURS, "MB", 64, larger=False, memory=True),
        ],
        rounds=1,
        threads=2,
    )


def on_device(small: bool, size: int, device: str) -> Workload:
    """Each way through Llama's heads on a GPU, against one SDPA pass, which is flash there."""
    heads, size, device = (4, 60, "cpu") if small else (32, size, device)
    shape = {"causal": True, "key_heads": heads // 4, "dtype": torch.bfloat16, "device": device}
    recorded, values = recorded_layers(2, heads, size, 128, **shape)
    wanted, relevance = range(size - 16, size), torch.rand(1, 16, size, device=device)
    few, _ = recorded_layers(2, heads, min(size, 1024), 128, **shape)
    ways = {
        "carry_back": lambda: carry_back(recorded, relevance)[0].sum(-1),
        "attention_received": lambda: attention_received(recorded)[0],
        OURS: lambda: rollout_rows(recorded, wanted)[0].sum(-1).cpu(),
        "shorter": lambda: rollout_rows(few, range(16))[0].cpu(),
    }
    return Workload(
        f"2 layers of Llama on {device}, {heads} / {heads // 4} heads x 128, S={size}, bfloat16",
        ways | {"SDPA": lambda: sdpa_pass(recorded, values)},
        {OURS: lambda: np.ones(len(wanted)), "shorter": lambda: float64_rows(few, range(16))},
        [
            Ratio(
                f"{'rollout_rows' if way == OURS else way} ÷ SDPA", way, "SDPA", 0.6, larger=False
            )
            for way in ways.keys() - {"shorter"}
        ],
        tolerance=1e-4,
        threads=2,  # of which the wall clock counts
    )


def received(small: bool, patches: int) -> Workload:
    """Against the full matrix, and with large scores."""
    patches = 300 if small else patches
    workload, recorded = _received(patches)
    loud, _ = recorded_layers(1, 16, patches, 64, causal=False, loud=300)
    workload.contenders |= {
        "full matrix": lambda: contenders.column_sums(recorded),
        LOUD: lambda: attention_received(loud)[0],
    }
    workload.expected[LOUD] = lambda: float64_received(loud)
    workload.ratios += [
        Ratio("times faster than the full matrix", "full matrix", OURS, 5),
        Ratio("times less memory than the full matrix", "full matrix", OURS, 200, memory=True),
        Ratio("scores up to 300 ÷ common ones", LOUD, OURS),
    ]
    return workload


def received_large(small: bool) -> Workload:
    """A layer whose full matrix would not fit: 17 GiB, so only the sum is compared."""
    workload, recorded = _received(patches := 300 if small else 98 * 174)
    workload.contenders[OURS] = lambda: attention_received(recorded)[0].sum()[None]
    workload.expected[OURS] = lambda: np.array([float(patches)])
    workload.rounds, workload.threads = 1, 2
    return workload


def _received(patches: int) -> tuple[Workload, list[Call]]:
    heads = 16
    recorded, values = recorded_layers(1, heads, patches, 64, causal=False)
    workload = Workload(
        f"attention received, {patches} patches, {heads} heads",
        {
            "SDPA": lambda: sdpa_pass(recorded, values),
            ALONE: lambda: contenders.exponentials_alone(recorded, 1, 512, 2048),
            OURS: lambda: attention_received(recorded)[0],
        },
        {OURS: lambda: float64_received(recorded)},
        [
            Ratio("times one SDPA pass", OURS, "SDPA", 0.5, larger=False),
            Ratio(f"times one SDPA pass{LIMIT}", ALONE, "SDPA"),
            Ratio("MB of extra memory", OURS, "MB", 16, larger=False, memory=True),
        ],
        work=2.0 * heads * 64 * patches**2,
    )
    return workload, recorded


def without_attention(small: bool) -> Workload:
    """All rows of |M| of a layer of Qwen3.5's shape, against that layer's own forward pass."""
    from transformers import Qwen3_5TextConfig
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet

    from rolloutlib.recording.mixing import RecordedState
    from rolloutlib.recording.rules import recording_rule, rules_noted

    sizes = {"hidden_size": 64, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
    config = Qwen3_5TextConfig(**sizes if small else {})
    torch.manual_seed(0)
    module, made = Qwen3_5GatedDeltaNet(config, 0).eval(), []
    torch.nn.init.uniform_(module.A_log, -5, -1)  # heads that remember a few tokens, or hundreds

    @torch.no_grad()
    def recorded(size: int) -> RecordedState:
        with rules_noted(module, recording_rule(lambda _, make: made.append(make("delta")))):
            module(torch.randn(1, size, config.hidden_size))
        return made.pop()

    layer, few = recorded(60 if small else 4096), recorded(60 if small else 300)
    tokens = layer.shape[1]
    given = torch.randn(1, tokens, config.hidden_size)
    relevance = torch.rand(1, 16, tokens)

    def float64_received_by_few():
        shares = np.abs(state_matrix(few))
        return (shares / shares.sum(-1, keepdims=True)).mean(1).sum(1)[0]

    return Workload(
        f"rows of |M|, layer of Qwen3.5: {layer.size[1]} heads x {layer.width}, S={tokens}",
        {
            "layer": torch.no_grad()(lambda: module(given)),
            OURS: lambda: attention_received([layer])[0].mean(),
            "signs kept": lambda: layer.carried(relevance)[0].sum(),
            "shorter": lambda: attention_received([few])[0],
        },
        # Float64 rows of the long one would take minutes: those of a shorter one are compared.
        {OURS: lambda: np.ones(()), "shorter": float64_received_by_few},
        [
            Ratio("all rows ÷ the layer's own forward", OURS, "layer", 3, larger=False),
            Ratio("MB of extra memory", OURS, "MB", 100, larger=False, memory=True),
            Ratio("16 rows, signs kept ÷ forward", "signs kept", "layer", 3, larger=False),
            Ratio("MB, signs kept", "signs kept", "MB", 100, larger=False, memory=True),
        ],
        work=4.0 * layer.size[1] * layer.width * tokens**2 / 2,
        rounds=1,
        tolerance=1e-4,
    )


def causal_product(small: bool) -> Workload:
    size = 300 if small else 2300
    layers = [layer.tril() for layer in softmax_layers(2, size, size)]
    first, second = (Transition(DenseLayer(layer), Settings()) for layer in layers)
    product = first.after(None)
    parts = [second.part(tile) for tile in row_tiles(second.layer)]
    whole = torch.empty(size, size)

    def grown():
        return Product(product.after(part) for part in parts).matrix(size)[0]

    return Workload(
        f"causal product of two layers, n={size}",
        {
            "torch.mm": lambda: torch.mm(layers[1], layers[0], out=whole),
            OURS: grown,
            "from attention": lambda: rollout(layers),
        },
        {OURS: lambda: products([layer[None].numpy() for layer in layers])[-1]},
        [
            Ratio("times faster than torch.mm", "torch.mm", OURS, 4.5),
            Ratio(f"times faster than torch.mm{LIMIT}", "torch.mm", "limit"),
            Ratio("times faster than torch.mm, reading and mixing", "torch.mm", "from attention"),
        ],
        work=size**3 / 3,
    )


def generation(small: bool, length: int, target: float, layers: int = 8) -> Workload:
    from rolloutlib import record_attention  # with transformers, which takes seconds

    model, inputs, new = _llava(small, length, layers)
    language, length = model.model.language_model, inputs["input_ids"].shape[1]
    wanted = range(length - 1, length - 1 + new)
    words = {"max_new_tokens": new, "min_new_tokens": new}
    words["suppress_tokens"] = [model.config.image_token_id]  # which a random model might say

    @torch.no_grad()
    def generate(**options):
        return model.generate(**inputs, **words, **options)

    def recorded():
        with record_attention(language, head_fusion="mean") as recording:
            generate()
        return rollout_rows(recording["language"], wanted)[0]

    text = model.config.text_config
    heads, layers = text.num_attention_heads, text.num_hidden_layers
    like, _ = recorded_layers(layers - 1, heads, length, text.head_dim, causal=True)

    def least():
        generate()
        contenders.exponentials_alone(like, 4, 128, 640)

    @torch.no_grad()
    def eager(sequence=None):
        keep = {"output_attentions": True, "return_dict_in_generate": True}
        model.set_attn_implementation({"text_config": "eager"})
        if sequence is None:
            kept = generate(**keep).attentions
        else:
            given = {"input_ids": sequence, "attention_mask": torch.ones_like(sequence)}
            kept = model(**inputs | given, output_attentions=True).attentions
        model.set_attn_implementation({"text_config": "sdpa"})
        return kept

    def expected():
        kept = eager(generate()[:, :-1])
        return products([layer[0].numpy() for layer in kept])[-1][wanted]

    return Workload(
        f"`generate` of {new} tokens, {layers} layers, recording and rollout, S={length}",
        {"plain": generate, "eager, attention kept": eager, ALONE: least, OURS: recorded},
        {OURS: expected},
        [
            Ratio("times plain `generate`", OURS, "plain", target, larger=False),
            Ratio(f"times plain `generate`{LIMIT}", ALONE, "plain"),
            Ratio(
                "times less memory than eager, beyond plain `generate`",
                "eager, attention kept",
                OURS,
                25,
                memory=True,
                beyond="plain",
            ),
        ],
        tolerance=1e-4,  # the model itself answers in float32, and eagerly with other roundings
    )


def every_head(small: bool) -> Workload:
    """Attention of all heads of all layers of a LLaVA, as two packages give it, and what rows of
    the rollout take, which need no head whole."""
    from rolloutlib import record_attention  # with transformers, which takes seconds

    model, inputs, _ = _llava(small, 620, layers=2)
    language = model.model.language_model

    def recorded():
        with torch.no_grad(), record_attention(language) as recording:
            model(**inputs, use_cache=False, logits_to_keep=1)
        return recording["language"]

    def eager() -> torch.Tensor:
        model.set_attn_implementation({"text_config": "eager"})
        with torch.no_grad():
            kept = model(**inputs, use_cache=False, output_attentions=True).attentions
        model.set_attn_implementation({"text_config": "sdpa"})
        return torch.cat(kept)

    heads = {OURS: lambda: torch.cat([layer.probabilities() for layer in recorded()])}
    heads["rows"] = lambda: rollout_rows(recorded(), [-1])[0]
    peers = contenders.peers_for_heads(model, inputs)
    shown = inputs["input_ids"][0] == model.config.image_token_id  # all that vl-saliency gives
    answers = {OURS: eager, "attnread": eager, "vl-saliency": lambda: eager()[..., shown]}
    return Workload(
        "attention of all heads, LLaVA of 2 layers, S=620",
        heads | peers,
        {name: answer for name, answer in answers.items() if name in heads | peers},
        [
            *(Ratio(f"times faster than {peer}", peer, OURS, 10) for peer in peers),
            *(
                Ratio(
                    f"times less memory for rows of the rollout than {peer}",
                    peer,
                    "rows",
                    20,
                    memory=True,
                )
                for peer in peers
            ),
        ],
        rounds=1,
        tolerance=1e-4,
    )


def limits(measure: str, over: str | tuple[str, ...], row: str = "one row") -> list[Ratio]:
    """The least time and memory the machine allows, if attention is read once."""
    return [
        Ratio(f"{measure}, whole matrix{LIMIT}", over, "limit"),
        Ratio(f"{measure}, {row}{LIMIT}", over, "reading"),
    ]


def real_answer(small: bool, model: str) -> Workload:
    """An answer and its maps against the answer alone, at a real model's size."""
    from benchmarks import answers  # with transformers

    return getattr(answers, model)(small)


def _read_and_select(layer: torch.Tensor) -> None:
    """What a discarding layer always needs: to read its entries, and to select a threshold."""
    layer.sum()
    np.partition(layer[0].numpy().ravel(), layer[0].numel() // 10)


def _products(layers: list) -> float:
    """Operations of all the products of these layers."""
    return 2.0 * (len(layers) - 1) * layers[0].shape[-1] ** 3


def _llava(small: bool, length: int, layers: int = 8):
    """Real classes and widths, random weights: CLIP-L of 6 layers, Llama of 8 layers, 1024 wide."""
    from small_llava import small_llava  # with transformers

    shape = {"hidden_size": 1024, "num_attention_heads": 16}
    vision = shape | {"intermediate_size": 4096, "num_hidden_layers": 6}
    text = shape | {"intermediate_size": 2816, "num_key_value_heads": 16}
    text |= {"num_hidden_layers": layers, "max_position_embeddings": 4096}
    sizes = {} if small else {"image_size": 336, "vision": vision}
    sizes |= {} if small else {"text": text}
    model = small_llava(**sizes)
    tokens = 16 if small else 576
    torch.manual_seed(0)
    words = torch.randint(4, 12, (1, 5 if small else length - tokens))
    image = torch.full((1, tokens), model.config.image_token_id)
    ids = torch.cat([words[:, :2], image, words[:, 2:]], 1)
    pixels = torch.randn(1, 3, *[56 if small else 336] * 2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return model, inputs, 4 if small else 16


def _sizes(layers: list) -> str:
    return "x".join(map(str, (len(layers), *layers[0].shape)))


WORKLOADS = {
    "teaching": teaching,
    "list": attention_list,
    "causal product": causal_product,
    "rows of LLaVA": lambda small: rows(small, "LLaVA", 6, 32, 620, 128),
    "received": lambda small: received(small, 4096),
    "generate": lambda small: generation(small, 620, 1.05),
    "video": video,
    "rows of Fuyu": lambda small: rows(small, "Fuyu", 3, 64, 2300, 64),
    "generate, long": lambda small: generation(small, 2300, 1.10, layers=4),
    "received, large": received_large,
    **{
        f"{size} on {threads}": partial(one_layer, size=size, threads=threads)
        for size in (800, 3072)
        for threads in (1, 2)
    },
    "long": long_sequence,
    "without attention": without_attention,
    HEADS: every_head,
    "answer of Qwen3-VL": lambda small: real_answer(small, "qwen3_vl"),
    LARGE: lambda small: real_answer(small, "llava_7b"),
}
ON_CUDA = {
    f"{size} on cuda": partial(on_device, size=size, device="cuda") for size in (4096, 16_384)
}
WORKLOADS |= ON_CUDA
