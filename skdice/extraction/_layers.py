"""The classification layer of a torch model: its candidates, its head, what enters it."""

from collections.abc import Iterable
from copy import deepcopy
from difflib import get_close_matches
from threading import get_ident
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skdice._head import LinearHead
from skdice.extraction._outputs import map_tensors, output_tensors

# An error lists no more candidates than this.
N_LISTED = 5


def unwrap(model: Any) -> Any:
    """Return the module inside a skorch net, a compiled module or a data-parallel wrapper."""
    while True:
        if not isinstance(model, nn.Module) and hasattr(model, "initialize_module"):
            if not hasattr(model, "module_"):
                raise ValueError(
                    f"the {type(model).__name__} has no module yet: call its fit or initialize"
                )
            model = model.module_
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # torch.compile made the wrapper.
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def plain_layer(module: Any) -> nn.Linear | nn.Conv2d | None:
    """Return the Linear or 1x1 Conv2d that a module is or that it adapts; None for others.

    The layers of PEFT (LoRA, IA3, LoHa, ...) hold the layer that they adapt as ``base_layer``.
    """
    module = getattr(module, "base_layer", module)
    is_layer = isinstance(module, nn.Linear) or (
        isinstance(module, nn.Conv2d) and tuple(module.kernel_size) == (1, 1)
    )
    return module if is_layer and module.weight.is_floating_point() else None


def candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that could be the head, by name."""
    return {name: each for name, each in model.named_modules() if plain_layer(each) is not None}


def n_outputs(module: nn.Module) -> int:
    """Return the number of logits that a candidate gives."""
    layer = plain_layer(module)
    assert layer is not None
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def is_convolution(module: nn.Module) -> bool:
    """Tell whether a candidate classifies every position of a map."""
    return isinstance(plain_layer(module), nn.Conv2d)


def listed(names: Iterable[str]) -> str:
    """Return the first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - N_LISTED} more" * (len(names) > N_LISTED)
    return ", ".join(names[:N_LISTED]) + more


def resolve_layer(model: nn.Module, layer: str) -> str:
    """Return the name of a layer in the unwrapped model; raise where it cannot be the head."""
    modules, could_be = dict(model.named_modules()), candidates(model)
    if layer not in modules:
        for prefix in ("_orig_mod.", "module."):  # These are the wrappers that `unwrap` took off.
            layer = layer.removeprefix(prefix)
    if layer not in modules:
        # The layer that was meant has a similar name, or is registered last as most heads are.
        likely = dict.fromkeys([*get_close_matches(layer, could_be), *reversed(could_be)])
        raise ValueError(f"the model has no layer {layer!r}; candidates: {listed(likely)}")
    if layer not in could_be:
        inside = [name for name in could_be if name.startswith(f"{layer}.")]
        raise TypeError(
            f"the layer {layer!r} is a {type(modules[layer]).__name__}, expected a Linear or "
            "a 1x1 Conv2d with floating-point weights"
            + (f", such as {listed(inside)}" if inside else "")
        )
    return layer


def head_of(module: nn.Module) -> LinearHead:
    """Return a copy of a classification layer, with what adapters add to it.

    The layer of an adapter is still weight times features plus bias. Its bias is the output for
    features of zero, and its weight the output for the unit vectors less the bias.
    """
    layer = plain_layer(module)
    if layer is module:
        return LinearHead.from_torch(module)
    assert layer is not None
    # The copies are in single precision, so that the sum of layer and adapter is not rounded more.
    adapted, layer = deepcopy(module).float().eval(), deepcopy(layer).float()
    n_features = layer.weight.shape[1]
    units = torch.eye(n_features, device=layer.weight.device)
    with torch.no_grad(), torch.autocast(layer.weight.device.type, enabled=False):
        inputs = torch.cat([torch.zeros_like(units[:1]), units])
        if isinstance(layer, nn.Conv2d):
            inputs = inputs[..., None, None]
        bias, weight = adapted(inputs).flatten(1).split([1, n_features])
        layer.weight.copy_((weight - bias).T.reshape(layer.weight.shape))
        layer.bias = nn.Parameter(bias[0], requires_grad=False)
    return LinearHead.from_torch(layer)


class _Call(NamedTuple):
    """One call of the watched layer."""

    layer: nn.Module
    features: Tensor
    n_classes: int
    eps: float
    is_pooled_after: bool


class Watch:
    """A forward hook that copies what enters the classification layer, apart in each thread.

    The copy is made before the model goes on, because a later layer may write into it.

    A decoder's head runs on every token, and the model then selects one token's logits. The hook
    appends the features to the logits, so that the model selects both by the same rule; `take`
    cuts them apart again.
    """

    def __init__(self, layer: str) -> None:
        self._layer = layer
        # A service may have several threads in the model at once.
        self._calls: dict[int, list[_Call]] = {}

    def start(self) -> None:
        """Forget the calls in this thread, of a pass that failed too."""
        self._calls[get_ident()] = []

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        """Keep the features; return logits and features together where they are pooled later."""
        features: Tensor = next(iter((*args, *kwargs.values())))
        is_pooled_after = features.ndim > 2 and not is_convolution(layer)
        if is_convolution(layer):
            # The mean may be taken before, because it commutes with a 1x1 convolution.
            kept = features.mean((-2, -1))
        else:
            kept = features if is_pooled_after else features.clone()
        eps = max(eps_of(features), eps_of(output))
        calls = self._calls.setdefault(get_ident(), [])
        calls.append(_Call(layer, kept, n_outputs(layer), eps, is_pooled_after))
        return torch.cat([output, features], dim=-1) if is_pooled_after else None

    def take(self, output: Any) -> tuple[Any, Tensor, _Call]:
        """Return the model's output, the features (n, n_features), and the call of the layer."""
        calls = self._calls.pop(get_ident(), [])
        if len(calls) != 1:
            raise ValueError(
                f"the layer {self._layer!r} ran {len(calls)} times in one pass of the model, "
                "expected once"
            )
        (call,) = calls
        features = call.features
        if call.is_pooled_after:
            width = call.n_classes + features.shape[-1]

            def is_joined(tensor: Tensor) -> bool:
                sizes = tensor.shape
                return tensor.ndim > 0 and sizes[-1] == width and set(sizes[1:-1]) <= {1}

            joined = [each for each in output_tensors(output) if is_joined(each)]
            if not joined:
                raise self.not_one_vector(features)
            features = joined[0].reshape(-1, width)[:, call.n_classes :].to(features.dtype)
            output = map_tensors(
                output, lambda each: each[..., : call.n_classes] if is_joined(each) else each
            )
        if features.ndim != 2:
            raise self.not_one_vector(features)
        return output, features, call

    def not_one_vector(self, features: Tensor) -> ValueError:
        """Return the error for a layer whose input is not one vector per sample."""
        return ValueError(
            f"the input of the layer {self._layer!r} has shape {tuple(features.shape)}, expected "
            "one vector per sample (n, n_features), or several of which the model pools the logits"
        )

    def widened(self) -> Tensor | None:
        """Return the features that were appended to the logits in a pass that failed."""
        calls = self._calls.get(get_ident(), [])
        return next((each.features for each in calls if each.is_pooled_after), None)


def eps_of(tensor: Tensor) -> float:
    """Return the precision that a tensor was computed with."""
    if not tensor.is_floating_point():
        return 0.0
    eps = float(torch.finfo(tensor.dtype).eps)
    # A GPU may round the factors of a product to ten bits.
    return max(eps, 2**-10) if tensor.is_cuda else eps
