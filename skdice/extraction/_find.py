"""Finding the classification layer, and the proof that features and head belong to the model."""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from skdice._compat.arrays import to_numpy
from skdice._head import LinearHead
from skdice.extraction._layers import candidates, eps_of, is_convolution, listed
from skdice.extraction._outputs import LIMIT, least_deviation, logits_in, output_tensors

# The layer is recognised by this many rows, because all rows of all layers need too much memory.
N_ROWS = 8


def find_layer(model: nn.Module, call: Callable[[], Any]) -> str:
    """Return the name of the one layer whose output is the model's; `call` runs it on a batch."""
    samples, eps, outputs = _sample(model, call)
    found = [name for name, each in samples.items() if _gives(each, outputs, eps)]
    # A merged adapter gives the output of the layer inside it. Take the inner one.
    found = [name for name in found if not any(other.startswith(f"{name}.") for other in found)]
    if len(found) == 1:
        _refuse_tied(model, found[0])
        return found[0]
    if found:
        raise ValueError(
            "several layers give outputs of the model; name the classification layer with "
            f"layer=: {listed(found)}"
        )
    pair = _averaged(samples, eps, outputs)
    if pair:
        raise ValueError(
            f"the output of the model is the mean of the layers {pair[0]!r} and {pair[1]!r}, as "
            "in a distilled model, and each has features of its own; name one of them with "
            "layer=, whose logits are then not the model's"
        )
    sizes = {output.shape[-1] for output in outputs if output.ndim > 1}
    # The likely layers have as many outputs as the model has logits, and run late.
    latest = list(samples)[::-1]
    likely = sorted(latest, key=lambda name: samples[name].shape[1] not in sizes)
    raise ValueError(
        "no layer's output is the output of the model, nor its softmax, log-softmax, sigmoid or "
        f"quotient by a temperature; name the classification layer with layer=: {listed(likely)}"
    )


def verify(
    model: nn.Module,
    layer: str,
    logits: NDArray[Any],
    output: Any,
    eps: float,
    call: Callable[[], Any],
) -> None:
    """Raise unless logits computed from features and head are those in the model's output.

    `call` runs the model again, which is needed to explain a difference.
    """
    if not np.isfinite(logits).all():
        raise ValueError(
            "the logits of the first batch are not finite: look for NaN or infinity in the inputs, "
            "their mean and std, or the weights"
        )
    sizes = (logits.size, len(logits))
    tensors = [to_numpy(each) for each in output_tensors(output) if each.numel() in sizes]
    deviation = least_deviation(logits, tensors, eps)
    if deviation == np.inf:
        warnings.warn(
            "the features could not be checked: the output of the model has no floating tensor "
            f"of shape {logits.shape}, which are the logits of the layer {layer!r}",
            UserWarning,
            stacklevel=2,
        )
    elif deviation > LIMIT:
        samples, sample_eps, outputs = _sample(model, call)
        pair = _averaged(samples, sample_eps, outputs)
        if layer not in pair:
            raise ValueError(
                f"features and head of the layer {layer!r} give logits that are "
                f"{100 * deviation:.3g} % off the output of the model, and off the logits of its"
                " softmax, log-softmax, sigmoid or temperature, expected at most "
                f"{100 * LIMIT:g} %: " + _advice(model, layer, samples, sample_eps, outputs)
            )
        other = next(each for each in pair if each != layer)
        warnings.warn(
            f"the output of the model is the mean of the layers {layer!r} and {other!r}; features "
            f"and head are those of {layer!r} alone, whose logits are not the model's",
            UserWarning,
            stacklevel=2,
        )


def expected_logits(head: LinearHead, features: NDArray[Any]) -> NDArray[Any]:
    """Return the logits of features, in double precision."""
    return np.asarray(features, np.float64) @ head.weight.T.astype(np.float64) + head.bias


def _sample(
    model: nn.Module, call: Callable[[], Any]
) -> tuple[dict[str, NDArray[Any]], float, list[NDArray[Any]]]:
    """Run the model; return rows of each layer's output, the precision, and rows of its logits."""
    samples: dict[str, list[Tensor]] = {}

    def keep(name: str, layer: nn.Module, given: Any, output: Any) -> None:
        rows = output[:N_ROWS]
        # The rows are copied, because a later layer may write into the output.
        rows = rows.mean((-2, -1)) if is_convolution(layer) else rows.clone()
        samples.setdefault(name, []).append(rows)

    with ExitStack() as hooks:
        for name, layer in candidates(model).items():
            hooks.callback(layer.register_forward_hook(partial(keep, name)).remove)
        tensors = logits_in(call())
    once = {name: calls[0] for name, calls in samples.items() if len(calls) == 1}
    rows = [each[:N_ROWS] if each.ndim else each for each in tensors]
    eps = max(map(eps_of, (*once.values(), *rows)), default=0.0)
    return (
        {name: to_numpy(each) for name, each in once.items()},
        eps,
        [to_numpy(each) for each in rows],
    )


def _gives(sample: NDArray[Any], outputs: list[NDArray[Any]], eps: float) -> bool:
    """Tell whether a layer's output is one of the model's, pooled in one of the known ways."""
    if not sample.size or not np.isfinite(sample).all():
        return False
    pooled = [sample.reshape(-1, sample.shape[-1])]
    if sample.ndim > 2:
        # The head runs on every token: the model returns the logits of all tokens, which `Watch`
        # refuses, the mean of their logits, or the logits of one token of each row.
        outputs = [
            each.reshape(pooled[0].shape) if each.shape == sample.shape else each
            for each in outputs
        ]
        tokens = sample.reshape(len(sample), -1, sample.shape[-1])
        pooled.append(tokens.mean(axis=1))
        for output in outputs:
            if output.size == pooled[1].size:
                distance = np.abs(tokens - output.reshape(len(tokens), 1, -1)).max(axis=2)
                pooled.append(tokens[np.arange(len(tokens)), distance.argmin(axis=1)])
    return any(least_deviation(each, outputs, eps) <= LIMIT for each in pooled)


def _averaged(
    samples: dict[str, NDArray[Any]], eps: float, outputs: list[NDArray[Any]]
) -> tuple[str, ...]:
    """Return the two layers whose mean is the model's output, or nothing."""
    sizes = {output.size for output in outputs}
    vectors = [name for name, each in samples.items() if each.ndim == 2 and each.size in sizes]
    # The parts of an adapter are added up too, but are not heads.
    vectors = [
        name for name in vectors if not any(name.startswith(f"{other}.") for other in samples)
    ]
    for pair in combinations(vectors, 2):
        mean = (samples[pair[0]] + samples[pair[1]]) / 2
        if least_deviation(mean, outputs, eps) <= LIMIT:
            return pair
    return ()


def _advice(
    model: nn.Module,
    layer: str,
    samples: dict[str, NDArray[Any]],
    eps: float,
    outputs: list[NDArray[Any]],
) -> str:
    """Return what to do about a named or found layer that does not give the output."""
    adapter = layer.removesuffix(".base_layer")
    if adapter != layer:
        return f"the layer {adapter!r} adapts it: name that one, or merge the adapters"
    for name, sample in samples.items():
        if _gives(sample, outputs, eps):
            if name == layer:
                kind = type(model.get_submodule(layer)).__name__
                return f"its {kind} does more than weight times features plus bias"
            return f"the output is that of the layer {name!r}"
    return (
        "the model changes the logits after that layer, by an activation or a second layer; if the "
        "layer is the classification layer all the same, wrap the model in a module that returns "
        "the output of the layer"
    )


def _refuse_tied(model: nn.Module, found: str) -> None:
    """Raise where another module has the weight of the found layer as its own."""
    weight = model.get_submodule(found)._parameters.get("weight")
    # Only own parameters count: a wrapper may forward the weight of the layer in it.
    tied = [
        name
        for name, module in model.named_modules()
        if weight is not None
        and module is not model.get_submodule(found)
        and module._parameters.get("weight") is weight
    ]
    if tied:
        raise ValueError(
            f"the layer {found!r} shares its weight with {listed(tied)}; if it is the "
            f"classification layer all the same, say layer={found!r}"
        )
