"""What is timed: for each workload its contenders, and what all of them should answer."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from reference import products
from small_llava import small_llava

from benchmarks import contenders
from rolloutlib import RecordedLayer, attention_received, record_attention, rollout, rollout_rows
from rolloutlib.teaching import AttentionRollout
from rolloutlib.video import spatial_rollout

OURS = "rolloutlib"


@dataclass
class Ratio:
    """One line of the table: how two contenders compare, and what was aimed at.

    measure: what the number means.  over, under: the contenders divided.  target: at least this
    where `larger` is better, else at most this; 0 where there is none.
    """

    measure: str
    over: str
    under: str
    target: float
    larger: bool = True
    memory: bool = False


@dataclass
class Workload:
    """Contenders that get the same input, the float64 answer, and the lines of the table.

    expected: what `OURS` should answer.  tolerance: the largest difference allowed, as a share of
    the largest entry.  work: floating point operations of `OURS` that are products, or 0.
    """

    name: str
    contenders: dict[str, Callable]
    expected: Callable
    ratios: list[Ratio]
    tolerance: float = 1e-5
    work: float = 0.0
    rounds: int = 3


def softmax_layers(layers: int, *shape: int) -> list[torch.Tensor]:
    """Attention of random scores, some of them large."""
    generator = torch.Generator().manual_seed(0)
    scores = [torch.randn(*shape, generator=generator) for _ in range(layers)]
    return [(score * 3).softmax(-1) for score in scores]


def recorded_layers(
    layers: int, heads: int, size: int, width: int, *, causal: bool, loud: float = 0.0
) -> tuple[list[RecordedLayer], list[torch.Tensor]]:
    """Layers as a recording keeps them, and their values. `loud`: the size of the largest score."""
    generator, recorded, values = torch.Generator().manual_seed(0), [], []
    for _ in range(layers):
        query, key, value = torch.randn(3, 1, heads, size, width, generator=generator)
        largest = float((query[0, 0] @ key[0, 0].mT).abs().max())
        scaling = loud / largest if loud else width**-0.5
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        known = flash(query, key, value, 0.0, causal, scale=scaling)[1]
        recorded.append(RecordedLayer("", query, key, None, causal, scaling, logsumexp=known))
        values.append(value)
    return recorded, values


def sdpa_pass(layers: list[RecordedLayer], values: list[torch.Tensor]) -> None:
    """What attention itself costs in these layers."""
    for layer, value in zip(layers, values, strict=True):
        F.scaled_dot_product_attention(
            layer.query, layer.key, value, is_causal=layer.causal, scale=layer.scaling
        )


def float64_layers(layers: list[RecordedLayer]) -> list[np.ndarray]:
    """Head-fused attention in float64, from its definition, one head in memory at a time."""
    fused = []
    for layer in layers:
        total, size = 0, layer.shape[1]
        for query, key in zip(layer.query[0].double(), layer.key[0].double(), strict=True):
            scores = query @ key.mT * layer.scaling
            if layer.causal:
                scores.masked_fill_(torch.ones(size, size).triu(1).bool(), -torch.inf)
            total = total + scores.softmax(-1)
        fused.append((total / layer.query.shape[1]).numpy())
    return fused


def float64_rows(layers: list[RecordedLayer], rows: list[int]) -> np.ndarray:
    """Rows of the whole product in float64."""
    return products([fused[None] for fused in float64_layers(layers)])[-1][rows]


# The workloads


def teaching(small: bool) -> Workload:
    layers = softmax_layers(3, 2, 40, 40) if small else softmax_layers(24, 16, 433, 433)
    plain = {"discard_ratio": 0.1}
    return Workload(
        f"`AttentionRollout`, discard 0.1, {_sizes(layers)}",
        {
            "sort": lambda: contenders.teaching_class(layers, 0.1),
            OURS: lambda: AttentionRollout(discard_ratio=0.1).compute_rollout(layers),
            "one row": lambda: rollout_rows(layers, [0], **plain),
        },
        lambda: products([layer.numpy() for layer in layers], **plain)[-1],
        [
            Ratio("times faster than by sorting, whole matrix", "sort", OURS, 9),
            Ratio("times faster than by sorting, CLS row", "sort", "one row", 18),
        ],
    )


def attention_list(small: bool) -> Workload:
    layers = softmax_layers(3, 2, 50, 50) if small else softmax_layers(24, 16, 577, 577)
    peers = contenders.installed_peers(layers)
    return Workload(
        f"list of attention in, rollout out, no discard, {_sizes(layers)}",
        peers
        | {
            "plain": lambda: contenders.teaching_class(layers, 0.0),
            OURS: lambda: rollout(layers),
            "one row": lambda: rollout_rows(layers, [0]),
            "maximum of heads": lambda: rollout(layers, head_fusion="max"),
        },
        lambda: products([layer.numpy() for layer in layers])[-1],
        [
            *(Ratio(f"times faster than {peer}, whole matrix", peer, OURS, 1.5) for peer in peers),
            *(Ratio(f"times faster than {peer}, one row", peer, "one row", 5) for peer in peers),
            Ratio("times faster than plain code, whole matrix", "plain", OURS, 0),
            Ratio("maximum ÷ mean, kept attention", "maximum of heads", OURS, 1.05, larger=False),
        ],
    )


def video(small: bool) -> Workload:
    shape = (2, 2, 40, 40) if small else (4, 16, 433, 433)
    layers = [layer.numpy() for layer in softmax_layers(3 if small else 24, *shape)]
    return Workload(
        f"spatial video rollout, NumPy in, {_sizes(layers)}",
        {
            "plain NumPy": lambda: contenders.video_procedure(layers),
            OURS: lambda: spatial_rollout(layers),
            "one row": lambda: rollout_rows(layers, [0]),
        },
        lambda: np.stack([products([x[frame] for x in layers])[-1] for frame in range(shape[0])]),
        [
            Ratio("times faster than NumPy, whole matrix", "plain NumPy", OURS, 2),
            Ratio("times faster than NumPy, CLS row", "plain NumPy", "one row", 5),
            Ratio("times less memory than NumPy", "plain NumPy", OURS, 15, memory=True),
        ],
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
            "eager and dense": lambda: contenders.dense_product(
                contenders.eager_attention(recorded), wanted
            ),
            OURS: lambda: rollout_rows(recorded, wanted)[0],
            "maximum of heads": lambda: rollout_rows(recorded, wanted, head_fusion="max"),
            "scores up to 300": lambda: rollout_rows(loud, wanted),
        },
        lambda: float64_rows(recorded, wanted),
        [
            Ratio("times one SDPA pass", OURS, "SDPA", 0.45, larger=False),
            Ratio("times faster than eager + dense", "eager and dense", OURS, 5),
            Ratio("times less memory than eager + dense", "eager and dense", OURS, 20, memory=True),
            Ratio("MB of scratch", OURS, "MB", 4, larger=False, memory=True),
            Ratio("maximum ÷ mean of heads", "maximum of heads", OURS, 1.05, larger=False),
            Ratio("scores up to 300 ÷ common ones", "scores up to 300", OURS, 0, larger=False),
        ],
        work=float(layers - 1) * heads * width * size**2,
    )


def received(small: bool, patches: int, heads: int, matrix: bool) -> Workload:
    patches = 300 if small else patches
    layers, values = recorded_layers(1, heads, patches, 64, causal=False)
    others = {"full matrix": lambda: contenders.column_sums(layers)} if matrix else {}
    compared = [
        Ratio("times faster than the full matrix", "full matrix", OURS, 5),
        Ratio("times less memory than the full matrix", "full matrix", OURS, 200, memory=True),
    ]
    return Workload(
        f"attention received, {patches} patches, {heads} heads",
        {"SDPA": lambda: sdpa_pass(layers, values), OURS: lambda: attention_received(layers)[0]}
        | others,
        lambda: float64_layers(layers)[0].sum(0),
        [
            Ratio("times one SDPA pass", OURS, "SDPA", 0.5, larger=False),
            Ratio("MB of extra memory", OURS, "MB", 16, larger=False, memory=True),
            *(compared if matrix else []),
        ],
        work=2.0 * heads * 64 * patches**2,
    )


def causal_product(small: bool) -> Workload:
    size = 300 if small else 2300
    layers = [layer.tril() for layer in softmax_layers(2, size, size)]
    first, second = (torch.from_numpy(products([layer[None]])[-1]).float() for layer in layers)
    whole = torch.empty(size, size)
    return Workload(
        f"causal product of two whole layers, n={size}",
        {
            "torch.mm": lambda: torch.mm(second, first, out=whole),
            "one layer": lambda: rollout(layers[:1]),
            OURS: lambda: rollout(layers),
        },
        lambda: products([layer[None].numpy() for layer in layers])[-1],
        [Ratio("times faster than torch.mm, reading attention included", "torch.mm", OURS, 4.5)],
        work=size**3 / 3,
    )


def generation(small: bool, length: int) -> Workload:
    model, inputs, new = _llava(small, length)
    length = inputs["input_ids"].shape[1]

    def generate(**options):
        return model.generate(**inputs, max_new_tokens=new, min_new_tokens=new, **options)

    def replay(sequence, **options):
        given = inputs | {"input_ids": sequence, "attention_mask": torch.ones_like(sequence)}
        return model(**given, use_cache=False, logits_to_keep=1, **options)

    def recorded():
        with torch.no_grad():
            sequence = generate()
            with record_attention(model) as recording:
                replay(sequence)
        return rollout_rows(recording["language"], range(length - 1, length - 1 + new))[0]

    def eager(run):
        model.set_attn_implementation({"text_config": "eager"})
        with torch.no_grad():
            result = run()
        model.set_attn_implementation({"text_config": "sdpa"})
        return result

    def expected():
        kept = eager(lambda: replay(generate(), output_attentions=True).attentions)
        return products([layer[0].numpy() for layer in kept])[-1][length - 1 : length - 1 + new]

    keep = {"output_attentions": True, "return_dict_in_generate": True}
    return Workload(
        f"`generate` of {new} tokens, recording and rollout, S={length}",
        {
            "plain": torch.no_grad()(generate),
            "eager, attention kept": lambda: eager(lambda: generate(**keep)),
            OURS: recorded,
        },
        expected,
        [
            Ratio("times plain `generate`", OURS, "plain", 1.1, larger=False),
            Ratio("times less memory than eager", "eager, attention kept", OURS, 25, memory=True),
        ],
        rounds=2,
    )


def _llava(small: bool, length: int):
    """Real classes and widths, random weights: CLIP-L of 6 layers, Llama of 8 layers of 1024."""
    shape = {"hidden_size": 1024, "num_attention_heads": 16}
    vision = shape | {"intermediate_size": 4096, "num_hidden_layers": 6}
    text = shape | {"intermediate_size": 2816, "num_hidden_layers": 8, "num_key_value_heads": 16}
    sizes = {} if small else {"image_size": 336, "vision": vision}
    sizes |= {} if small else {"text": text | {"max_position_embeddings": 4096}}
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
    "video": video,
    "rows of LLaVA": lambda small: rows(small, "LLaVA", 6, 32, 620, 128),
    "rows of Fuyu": lambda small: rows(small, "Fuyu", 3, 64, 2300, 64),
    "received, large": lambda small: received(small, 98 * 174, 2, matrix=False),
    "received": lambda small: received(small, 4096, 16, matrix=True),
    "causal product": causal_product,
    "generate": lambda small: generation(small, 620),
    "generate, long": lambda small: generation(small, 2300),
}
