"""Whether a model still computes what it did."""

from collections import defaultdict
from itertools import chain

import torch

SAMPLED = 8  # entries of a tensor that are compared, or a few more


def state_of(model: torch.nn.Module) -> int:
    """A number that changes with what a model computes: with its weights, its adapters, or hooks.

    Weights are compared by torch's counters of changes and by some entries of each. So a change of
    other entries through `.data`, which torch does not count, goes unnoticed.
    """
    changes, samples, switches = [], defaultdict(list), []
    for tensor in chain(model.parameters(), model.buffers()):
        changes.append(0 if tensor.is_inference() else tensor._version)
        if not tensor.is_meta:  # as weights on a disk are
            some = tensor.detach().reshape(-1)[:: max(tensor.numel() // SAMPLED, 1)]
            samples[tensor.device].append(some.to(torch.complex128).reshape(-1))
    for module in model.modules():
        switches += [*module._forward_hooks, *module._forward_pre_hooks]
        if hasattr(module, "merged_adapters"):  # a layer of PEFT
            of = module.disable_adapters, module.active_adapters, module.merged_adapters
            switches.append(str((*of, module.scaling)))
    read = [tuple(torch.cat(every).tolist()) for every in samples.values()]
    return hash((tuple(changes), tuple(read), tuple(switches)))
