"""Cutting a program before its classification layer."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from skdice._compat.arrays import to_numpy
from skdice._engines.devices import torch_device
from skdice.extraction._find import verify
from skdice.extraction._layers import listed
from skdice.extraction._outputs import map_tensors

HINT = "save one with torch.jit.save(torch.jit.script(model.eval()), path) or torch.export.save"


class ProgramClassifier(nn.Module):
    """A program in two parts: the body before its classification layer, and that layer.

    The first batch is compared with the output of the whole `program`. `batch_rows` is the one size
    of batch that the program takes, if it is fixed.
    """

    def __init__(
        self,
        body: Callable[..., Any],
        head: nn.Linear | nn.Conv2d,
        program: Callable[..., Any],
        layer_name: str,
        batch_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.head, self.layer_name, self.batch_rows = head, layer_name, batch_rows
        # Tuples hide the programs from this module, because their device was settled when they
        # were loaded.
        self._body = (body,)
        self._program: tuple[Callable[..., Any], ...] = (program,)

    def forward(self, *inputs: Tensor, **keywords: Tensor) -> Tensor:
        """Return the logits, averaged over all positions for a convolution."""
        n_rows = len(next(iter((*inputs, *keywords.values()))))
        inputs = tuple(self._prepared(each, n_rows) for each in inputs)
        keywords = {name: self._prepared(each, n_rows) for name, each in keywords.items()}
        features = self._body[0](*inputs, **keywords)[:n_rows]
        logits: Tensor = self.head(features)
        logits = logits.mean((2, 3)) if logits.ndim == 4 else logits
        if self._program:
            output = self._program[0](*inputs, **keywords)
            output = map_tensors(output, lambda each: each[:n_rows] if each.ndim else each)
            eps = torch.finfo(logits.dtype).eps
            verify(self, self.layer_name, to_numpy(logits), output, eps, lambda: output)
            self._program = ()
        return logits

    def _prepared(self, values: Tensor, n_rows: int) -> Tensor:
        """Return an input in the dtype of the program, filled up to its size of batch."""
        if values.is_floating_point():
            values = values.to(self.head.weight.dtype)
        missing = (self.batch_rows or n_rows) - n_rows
        if missing <= 0:
            return values
        return torch.cat([values, values[-1:].expand(missing, *values.shape[1:])])

    def train(self, mode: bool = True) -> ProgramClassifier:
        """Return self, because a program has no training mode."""
        return self


@dataclass
class _Layer:
    """A linear layer found in the graph of a program."""

    name: str
    weight: Tensor
    bias: Tensor | None
    entered_by: Any

    def module(self) -> nn.Linear | nn.Conv2d:
        """Return the layer as a module."""
        n_out, n_in, *kernel = self.weight.shape
        has_bias = self.bias is not None
        layer: nn.Linear | nn.Conv2d = (
            nn.Conv2d(n_in, n_out, 1, bias=has_bias) if kernel else nn.Linear(n_in, n_out, has_bias)
        )
        layer.weight = nn.Parameter(self.weight.detach().clone(), requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=False)
        return layer


def load(path: Path, layer: str | None, device: Any) -> ProgramClassifier:
    """Load a program, and cut it; see `skdice.extraction.load_program`."""
    if not isinstance(device, torch.device):
        device = torch_device(device or "cpu") or torch.device("cpu")
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"cannot load {path}: it is not a program of torch; {HINT}") from error
    if any(name.endswith("/constants.pkl") for name in names):
        return _cut_script(path, str(path), layer, device)
    if any("exported_program" in name or "/models/" in name for name in names):
        return _cut_exported(path, str(path), layer, device)
    raise ValueError(f"cannot load {path}: it holds weights or data, but no program; {HINT}")


def from_memory(program: Any, layer: str | None, device: Any) -> ProgramClassifier:
    """Cut a copy of a TorchScript module or an exported program.

    It runs on the device of the program if `device` is None.
    """
    is_exported = isinstance(program, torch.export.ExportedProgram)
    state = program.state_dict if is_exported else program.state_dict()
    if device is None:
        device = next((each.device for each in state.values()), "cpu")
    # A copy by way of a file is the only one that torch makes of every program.
    file = BytesIO()
    save, cut = (torch.export.save, _cut_exported) if is_exported else (torch.jit.save, _cut_script)
    with _without_warnings():
        save(program, file)
    file.seek(0)
    return cut(file, f"the {type(program).__name__}", layer, torch.device(device))


def _without_warnings() -> Any:
    """Silence torch on the end of TorchScript, and on its own use of torch."""
    return warnings.catch_warnings(action="ignore")


def _cut_script(
    file: Path | BytesIO, source: str, layer: str | None, device: torch.device
) -> ProgramClassifier:
    with _without_warnings():
        # torch has no types for this function.
        script = torch.jit.load(file, map_location=device).eval()  # type: ignore[no-untyped-call]

    def frozen() -> Any:
        with _without_warnings():
            return torch.jit.freeze(script, optimize_numerics=False)

    body = frozen()
    graph = body.graph
    for node in graph.nodes():
        values = [each.toIValue() for each in node.inputs()]
        if (node.kind() == "aten::dropout" and values[2]) or (
            node.kind() == "aten::batch_norm" and values[5]
        ):
            raise _in_training_mode(source)

    def enters(value: Any) -> list[Any]:
        return list(value.node().inputs())

    def as_layer(value: Any) -> _Layer | None:
        node = value.node()
        kind, inputs = node.kind(), list(node.inputs())
        if kind not in ("aten::linear", "aten::conv2d", "aten::_convolution"):
            return None
        weight, bias = inputs[1].toIValue(), inputs[2].toIValue()
        name = inputs[1].debugName().removeprefix("self.").removesuffix(".weight")
        return _as_layer(name, weight, bias, inputs[0])

    outputs = list(graph.outputs())
    found = _choose(source, outputs, enters, as_layer, layer)
    for n in reversed(range(len(outputs))):
        graph.eraseOutput(n)
    graph.registerOutput(found.entered_by)
    return ProgramClassifier(body, found.module(), frozen(), found.name)


def _cut_exported(
    file: Path | BytesIO, source: str, layer: str | None, device: torch.device
) -> ProgramClassifier:
    with _without_warnings():
        exported = torch.export.load(file)
    # The program may have been saved on another device.
    exported = move_to_device_pass(exported, device)
    body: Any = exported.module(check_guards=False)
    graph, aten = body.graph, torch.ops.aten
    for node in graph.nodes:
        if (node.target is aten.dropout.default and node.args[2]) or (
            node.target is aten.batch_norm.default and node.args[5]
        ):
            raise _in_training_mode(source)

    def value_of(node: Any) -> Any:
        if node is None:
            return None
        if node.op == "get_attr":
            return attrgetter(node.target)(body)
        if node.target in (aten.t.default, aten.permute.default):
            return value_of(node.args[0])
        return None

    def name_of(node: Any) -> str:
        while node.op != "get_attr":
            node = node.args[0]
        return str(node.target).removesuffix(".weight")

    def as_layer(node: Any) -> _Layer | None:
        arguments = [*node.args, None, None]
        if node.target in (
            aten.linear.default,
            aten.conv2d.default,
            aten.convolution.default,
        ):
            entered_by, weight, bias = arguments[:3]
        elif node.target is aten.addmm.default:
            bias, entered_by, weight = arguments[:3]
        else:
            return None
        tensor = value_of(weight)
        if tensor is None:
            return None
        return _as_layer(name_of(weight), tensor, value_of(bias), entered_by)

    (output,) = graph.find_nodes(op="output")
    found = _choose(
        source, list(output.all_input_nodes), lambda n: n.all_input_nodes, as_layer, layer
    )
    output.args = (found.entered_by,)
    # The output is now one tensor, outside of any structure.
    graph.set_codegen(torch.fx.graph.CodeGen())
    graph.eliminate_dead_code()
    body.recompile()
    first = next(node for node in graph.nodes if node.op == "placeholder")
    n_rows = first.meta["val"].shape[0]
    program = exported.module(check_guards=False)
    batch_rows = n_rows if isinstance(n_rows, int) else None
    return ProgramClassifier(body, found.module(), program, found.name, batch_rows)


def _as_layer(name: str, weight: Any, bias: Any, entered_by: Any) -> _Layer | None:
    if not isinstance(weight, Tensor) or any(size != 1 for size in weight.shape[2:]):
        return None
    return _Layer(name, weight, bias, entered_by)


def _choose(
    source: str,
    outputs: list[Any],
    enters: Callable[[Any], list[Any]],
    as_layer: Callable[[Any], _Layer | None],
    wanted: str | None,
) -> _Layer:
    """Return the layer of the wanted name, or the one that every way back from the output meets."""
    found = {each.name: each for each in _layers(outputs, enters, as_layer, beyond=bool(wanted))}
    if wanted is not None:
        if wanted not in found:
            raise ValueError(f"{source} has no layer {wanted!r}; candidates: {listed(found)}")
        return found[wanted]
    if len(found) != 1:
        counted = f"it has {len(found)}: {listed(found)}" if found else "it has none"
        raise ValueError(
            f"{source}: expected one Linear or 1x1 convolution that gives the output, but {counted}"
            + "; name the classification layer with layer=" * bool(found)
        )
    return next(iter(found.values()))


def _layers(
    outputs: list[Any],
    enters: Callable[[Any], list[Any]],
    as_layer: Callable[[Any], _Layer | None],
    *,
    beyond: bool,
) -> Iterator[_Layer]:
    """Yield the last layers on the ways back from the outputs; with `beyond` all layers on them."""
    waiting, seen = list(outputs), set()
    while waiting:
        value = waiting.pop(0)
        if value in seen:
            continue
        seen.add(value)
        layer = as_layer(value)
        if layer is not None:
            yield layer
        if layer is None or beyond:
            waiting += enters(value)


def _in_training_mode(source: str) -> ValueError:
    return ValueError(
        f"{source} was saved in training mode, where dropout or batch normalisation make features "
        "random: call model.eval() before"
    )
