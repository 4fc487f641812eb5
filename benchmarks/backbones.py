"""Extraction and attach with the real architectures of timm, torchvision, transformers and PEFT.

    python -m venv backbones
    backbones/bin/pip install torch==2.14.1 torchvision==0.29.1
    backbones/bin/pip install timm transformers peft datasets skorch onnxruntime onnxscript -e .
    backbones/bin/python benchmarks/backbones.py --output benchmarks/results/DATE-backbones.rst

The weights are random, so that nothing is downloaded, and inputs and sizes are small. For every
architecture the table says which layer was found, how far features times weight plus bias are from
the logits that the model itself returns, whether the model was left as it was (weights, training
flags, hooks and its output), how far the scores of the module of `attach` are from the detector's,
and whether that module was exported to ONNX and gives the same scores there. A refusal is right
where features and head cannot give the output of the model; its reason is below the table.
"""

import argparse
import contextlib
import copy
import importlib.metadata
import io
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import timm
import torch
import torchvision
import transformers
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from torch import nn

from skdice import DICEDetector
from skdice.extraction import attach, extract_features

N_ROWS, N_CLASSES = 6, 10
# The largest deviation, relative to the largest value, that counts as rounding.
ROUNDING = 1e-4
TIMM = {
    "resnet18": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_100": 64,
    "regnetx_002": 64,
    "repvgg_a0": 64,
    "convnext_atto": 64,
    "convnextv2_atto": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "beit_base_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "mixer_s32_224": 224,
    "poolformer_s12": 64,
    "pit_ti_224": 224,
    "xcit_nano_12_p16_224": 224,
    "levit_128s": 224,
    "ghostnet_100": 64,
    "vgg11": 64,
    "edgenext_xx_small": 64,
    "tf_efficientnetv2_b0": 64,
}
# Models with two heads need the name of one.
DISTILLED = {"deit_tiny_distilled_patch16_224": "head_dist", "levit_128s": "head_dist.linear"}
TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v3_small": 64,
    "regnet_x_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "vit_b_32": 224,
}
SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": N_CLASSES,
    "pad_token_id": 0,
}
IMAGE = {**SMALL, "image_size": 32, "patch_size": 8}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Bert": SMALL,
    "Roberta": SMALL,
    "DistilBert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "Electra": {**SMALL, "embedding_size": 32},
    "DebertaV2": SMALL,
    "GPT2": {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4},
    "Llama": {**SMALL, "num_key_value_heads": 2},
    "Qwen2": {**SMALL, "num_key_value_heads": 2},
    "T5": {"vocab_size": 99, "d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "ViT": IMAGE,
    "DeiT": IMAGE,
}
ADAPTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "Bert, LoRA, modules_to_save": lambda model: get_peft_model(
        model, LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
    ),
    "Bert, LoRA, plain head": lambda model: get_peft_model(
        model, LoraConfig(target_modules=["query"])
    ),
    "Bert, IA3, plain head": lambda model: get_peft_model(
        model, IA3Config(target_modules=["key"], feedforward_modules=[])
    ),
    "Bert, LoHa, plain head": lambda model: get_peft_model(
        model, LoHaConfig(target_modules=["query"])
    ),
    "Bert, LoRA head": lambda model: get_peft_model(
        model, LoraConfig(target_modules=["classifier"])
    ),
    "Bert, LoRA head, merged": lambda model: merged(
        get_peft_model(model, LoraConfig(target_modules=["classifier"]))
    ),
    "Bert, LoRA, sequence task": lambda model: get_peft_model(
        model, LoraConfig(target_modules=["query"], task_type="SEQ_CLS")
    ),
}


class Result(NamedTuple):
    """One line of the table."""

    library: str
    name: str
    layer: str
    logits: str
    is_unchanged: str
    attached: str
    onnx: str
    reason: str = ""


def merged(model: nn.Module) -> nn.Module:
    """Merge the adapters, whose weights were made random before, into their layers."""
    randomise(model)
    model.merge_adapter()
    return model


def randomise(model: nn.Module) -> None:
    """Give new weights to the adapters, which start as no change."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("lora_B", "ia3_", "hada_w1_a", "modules_to_save")):
            nn.init.normal_(parameter.data, mean=1.0, std=0.3)


def cases() -> Iterator[tuple[str, str, Callable[[], nn.Module], Any, str | None]]:
    """Yield library, name, builder, inputs, and the name of the layer where one is needed."""
    for name, size in TIMM.items():
        images = torch.rand(N_ROWS, 3, size, size)
        build = lambda name=name: timm.create_model(name)  # noqa: E731
        yield "timm", name, build, images, None
        if name in DISTILLED:
            yield "timm", f"{name}, named", build, images, DISTILLED[name]
    for name, size in TORCHVISION.items():
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        images = torch.rand(N_ROWS, 3, size, size)
        build = lambda name=name, options=options: torchvision.models.get_model(name, **options)  # noqa: E731
        yield "torchvision", name, build, images, None
    tokens = {"input_ids": torch.randint(2, 98, (N_ROWS, 7))}
    tokens["attention_mask"] = (torch.arange(7) < torch.arange(2, 2 + N_ROWS)[:, None]).long()
    tokens["input_ids"] *= tokens["attention_mask"]
    pixels = {"pixel_values": torch.rand(N_ROWS, 3, 32, 32)}
    for name in TRANSFORMERS:
        inputs = pixels if name in ("ViT", "DeiT") else tokens
        if name == "T5":  # Its classifier needs one end-of-sentence token in each row.
            ids = tokens["input_ids"].clone()
            ids[torch.arange(N_ROWS), tokens["attention_mask"].sum(1) - 1] = 1
            inputs = {**tokens, "input_ids": ids}
        yield "transformers", name, lambda name=name: pretrained(name), inputs, None
    for name, adapt in ADAPTED.items():
        yield "peft", name, lambda adapt=adapt: adapted(adapt), tokens, None


def pretrained(name: str) -> nn.Module:
    """Return a small classifier of transformers with random weights."""
    kind = "Image" if name in ("ViT", "DeiT") else "Sequence"
    config = getattr(transformers, f"{name}Config")(
        **{**TRANSFORMERS[name], "num_labels": N_CLASSES, "pad_token_id": 0}
    )
    config.use_cache = False  # torch exports no cache of a decoder.
    config.decoder_start_token_id = 0
    return getattr(transformers, f"{name}For{kind}Classification")(config)


def adapted(adapt: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return a small BERT whose adapters do something."""
    model = adapt(pretrained("Bert"))
    if not any(getattr(each, "merged", False) is True for each in model.modules()):
        randomise(model)
    return model


def called(model: nn.Module, inputs: Any) -> Any:
    """Call a model in evaluation mode, without changing its flags."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad():
        output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    for module, was in training.items():
        module.training = was
    return output


def logits_of(output: Any) -> np.ndarray:
    """Return the logits that a model gives."""
    return getattr(output, "logits", output).numpy()


def deviation(given: np.ndarray, expected: np.ndarray) -> str:
    """Return the largest difference as a share of the largest value, with a mark if too large."""
    share = float(np.abs(given - expected).max() / np.abs(expected).max())
    return f"{share:.0e}" + " WRONG" * (share > ROUNDING)


def state_of(model: nn.Module) -> list[Any]:
    """Return what extraction must not change."""
    hooks = [len(module._forward_hooks) for module in model.modules()]
    return [[module.training for module in model.modules()], hooks]


def in_onnx(module: nn.Module, inputs: Any, scores: np.ndarray) -> str:
    """Export a module to ONNX, run it there, and return the deviation of the scores."""
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs,), {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                torch.onnx.export(module, args, path, kwargs=kwargs, verbose=False)
        except Exception as error:  # What an exporter refuses is its own.
            return f"not exported by torch: {type(error).__name__}"
        session = onnxruntime.InferenceSession(path)
        values = [*args, *kwargs.values()]
        names = [each.name for each in session.get_inputs()]
        given = {name: each.numpy() for name, each in zip(names, values, strict=False)}
        return deviation(session.run(None, given)[-1], scores)


def measured(
    library: str, name: str, build: Callable[[], nn.Module], inputs: Any, layer: str | None
) -> Result:
    """Return the line of one architecture."""
    torch.manual_seed(0)
    model = build().train()
    for module in model.modules():  # Some heads start at zero, where every comparison holds.
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight)
    weights, before = copy.deepcopy(model.state_dict()), state_of(model)
    expected = logits_of(called(model, inputs))
    data = [inputs]
    try:
        extraction = extract_features(model, data, layer=layer)
    except (ValueError, TypeError) as error:
        return Result(
            library, name, "refused", "", unchanged(model, weights, before), "", "", str(error)
        )
    with torch.no_grad():
        features = np.asarray(extraction.features)
        found = features @ extraction.head.weight.T + extraction.head.bias
        logits = "of one head" if layer else deviation(found, expected)
        detector = DICEDetector(extraction.head, sparsity=0.1).fit(features)
        attached = attach(model, detector)
        _, scores = called(attached, inputs)
        return Result(
            library,
            name,
            extraction.layer,
            logits,
            unchanged(model, weights, before),
            deviation(scores.numpy(), detector.score_samples(features)),
            in_onnx(attached, inputs, scores.numpy()),
        )


def unchanged(model: nn.Module, weights: dict[str, torch.Tensor], before: list[Any]) -> str:
    """Return "yes" if weights, training flags and hooks of a model are as they were."""
    now = model.state_dict()
    same = now.keys() == weights.keys() and all(torch.equal(now[key], weights[key]) for key in now)
    return "yes" if same and state_of(model) == before else "NO"


def table(results: list[Result]) -> str:
    """Return the results as reStructuredText."""
    titles = ("library", "architecture", "layer", "logits", "unchanged", "attach", "ONNX")
    lines = [titles, *(each[:-1] for each in results)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(titles))]
    rule = "  ".join("=" * width for width in widths)
    rows = [
        "  ".join(f"{cell or chr(92):<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    reasons = [f"* {each.name} ({each.library}): {each.reason}" for each in results if each.reason]
    return "\n".join([rule, rows[0], rule, *rows[1:], rule, "", "Refused:", "", *reasons])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="part of the names of the architectures to run")
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    results, started = [], time.perf_counter()
    for library, name, build, inputs, layer in cases():
        if arguments.only and arguments.only not in f"{library} {name}":
            continue
        results.append(measured(library, name, build, inputs, layer))
        print(*results[-1], sep=" | ", flush=True)
    packages = ("torch", "timm", "torchvision", "transformers", "peft", "onnxruntime")
    versions = ", ".join(f"{each} {importlib.metadata.version(each)}" for each in packages)
    took = time.perf_counter() - started
    text = (
        "Real architectures\n==================\n\n"
        f"``python benchmarks/backbones.py`` in {took:.0f} s on {platform.machine()}, CPU, with "
        f"{versions}. Random weights, {N_ROWS} rows. Deviations are relative to the largest value."
        f"\n\n{table(results)}\n"
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
