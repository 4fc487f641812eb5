"""Finding the classification layer, and the proof that features and head belong to the model.

Importing this module imports torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skdice._compat.arrays import to_numpy
from skdice._head import LinearHead
from skdice.extraction._layers import candidates, listed, n_outputs
from skdice.extraction._outputs import LIMIT, least_deviation, logits_in, output_tensors

# The layer is recognised by so many rows. All rows of all layers would need too much memory.
N_ROWS = 8


def find_layer(model: nn.Module, call: Callable[[], Any]) -> str:
    """Return the name of the one layer whose output is the model's.

    Parameters
    ----------
    model : Module
        The unwrapped model.
    call : callable
        Runs the model on a batch, and returns its output.
    """
    samples, eps, outputs = _sample(model, call)
    found = [
        name
        for name, sample in samples.items()
        if (deviation := _sample_deviation(sample, outputs, eps)) is not None and deviation <= LIMIT
    ]
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
    # The head gives as many logits as the model, and runs late.
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

    Parameters
    ----------
    model : Module
        The unwrapped model.
    layer : str
        Name of the classification layer.
    logits : ndarray of shape (n, n_classes)
        Features times weight plus bias.
    output : object
        What the model returned.
    eps : float
        Precision of the computation.
    call : callable
        Runs the model again, which is needed to explain a difference.
    """
    if not np.isfinite(logits).all():
        raise ValueError(
            "the logits of the first batch are not finite: look for NaN or infinity in the inputs, "
            "their mean and std, or the weights"
        )
    tensors = [to_numpy(each) for each in output_tensors(output)]
    deviation = least_deviation(logits, tensors, eps)
    if deviation is None:
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
            raise mismatch(layer, deviation, _advice(model, layer, samples, sample_eps, outputs))
        other = next(each for each in pair if each != layer)
        warnings.warn(
            f"the output of the model is the mean of the layers {layer!r} and {other!r}; features "
            f"and head are those of {layer!r} alone, whose logits are not the model's",
            UserWarning,
            stacklevel=2,
        )


def mismatch(layer: str, deviation: float, advice: str) -> ValueError:
    """Return the error for features and head that do not give the model's output."""
    return ValueError(
        f"features and head of the layer {layer!r} give logits that are {100 * deviation:.3g} % "
        "off the output of the model, and off the logits of its softmax, log-softmax, sigmoid or "
        f"temperature, expected at most {100 * LIMIT:g} %: {advice}"
    )


def expected_logits(head: LinearHead, features: NDArray[Any]) -> NDArray[Any]:
    """Return the logits of features, in double precision."""
    return np.asarray(features, np.float64) @ head.weight.T.astype(np.float64) + head.bias


def _sample(
    model: nn.Module, call: Callable[[], Any]
) -> tuple[dict[str, NDArray[Any]], float, list[NDArray[Any]]]:
    """Run the model; return rows of each layer's output, the precision, and rows of its logits."""
    samples: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(layer: nn.Module, given: Any, output: Any) -> None:
            is_convolution = output.ndim > 3 and output.shape[-1] != n_outputs(layer)
            rows = output[:N_ROWS]
            # A copy, because a later layer may write into the output.
            rows = rows.mean((-2, -1)) if is_convolution else rows.clone()
            samples.setdefault(name, []).append(rows)

        return keep

    with ExitStack() as hooks:
        for name, layer in candidates(model).items():
            hooks.callback(layer.register_forward_hook(hook(name)).remove)
        tensors = logits_in(call())
    once = {name: calls[0] for name, calls in samples.items() if len(calls) == 1}
    rows = [each[:N_ROWS] if each.ndim else each for each in tensors]
    kinds = {each.dtype for each in (*once.values(), *rows) if each.is_floating_point()}
    eps = max((float(torch.finfo(kind).eps) for kind in kinds), default=0.0)
    if any(each.is_cuda for each in once.values()):
        eps = max(eps, 2**-10)
    return (
        {name: to_numpy(each) for name, each in once.items()},
        eps,
        [to_numpy(each) for each in rows],
    )


def _sample_deviation(
    sample: NDArray[Any], outputs: list[NDArray[Any]], eps: float
) -> float | None:
    """Return the deviation of a layer's output, over all ways of pooling, from the model's."""
    if not sample.size or not np.isfinite(sample).all():
        return None
    pooled = [sample]
    if sample.ndim > 2:
        # Per token: the model returns the logits of one token of each row, or their mean.
        tokens = sample.reshape(len(sample), -1, sample.shape[-1])
        pooled = [tokens.mean(axis=1)]
        for output in outputs:
            if output.size == pooled[0].size:
                distance = np.abs(tokens - output.reshape(len(tokens), 1, -1)).max(axis=2)
                pooled.append(tokens[np.arange(len(tokens)), distance.argmin(axis=1)])
            if output.shape == sample.shape:
                # The model returns the logits of every token, which `Watch` refuses.
                pooled.append(tokens.reshape(-1, sample.shape[-1]))
                outputs = [*outputs, output.reshape(pooled[-1].shape)]
    deviations = [least_deviation(each, outputs, eps) for each in pooled if each.ndim == 2]
    return min((each for each in deviations if each is not None), default=None)


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
        deviation = least_deviation(mean, outputs, eps)
        if deviation is not None and deviation <= LIMIT:
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
        deviation = _sample_deviation(sample, outputs, eps)
        if deviation is not None and deviation <= LIMIT:
            if name == layer:
                return (
                    f"its {type(model.get_submodule(layer)).__name__} does more than weight times "
                    "features plus bias"
                )
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
