"""Every kind of model, built by hand as its library builds it: features and head are right."""

import copy
import warnings
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from torch import nn

from skdice import DICEDetector, LinearHead
from skdice.extraction import attach, extract_features, iterate_features

ROWS = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randint(1, 30, (20, 9), generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A body, a head named `fc`, and a function of the logits that is returned."""

    def __init__(self, after=lambda logits: logits, n_classes=4):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.drop = nn.Linear(12, 8), nn.Dropout(0.5)
        self.fc, self.after = nn.Linear(8, n_classes), after

    def forward(self, x):
        return self.after(self.fc(self.drop(torch.relu(self.body(x)))))


def logits_of(extraction):
    return np.asarray(extraction.features) @ extraction.head.weight.T + extraction.head.bias


def check_attached(model, data, extraction, **options):
    """Check that the module of `attach` gives the model's output and the detector's scores."""
    detector = DICEDetector(extraction.head, sparsity=0.2).fit(extraction.features)
    attached = attach(model, detector, **options)
    with torch.no_grad():
        output, scores = attached(**data) if isinstance(data, dict) else attached(data)
    np.testing.assert_allclose(scores, detector.score_samples(extraction.features), rtol=1e-5)
    return output


class Overwriting(Net):
    """Writes into the features and into the logits after the head."""

    def forward(self, x):
        features = torch.relu(self.body(x))
        logits = self.fc(features)
        features.mul_(0)
        result = logits.clone()
        logits.fill_(7)
        return result


def test_features_are_those_that_entered_the_head_whatever_is_written_later():
    model = Overwriting()
    with torch.no_grad():
        expected = torch.relu(model.body(ROWS)).numpy()
    for layer in (None, "fc"):
        extraction = extract_features(model, ROWS.split(16), layer=layer)
        np.testing.assert_array_equal(extraction.features, expected)
        check_attached(model, ROWS, extraction)


class Squeezing(nn.Module):
    """SqueezeNet's end: a 1x1 convolution, an activation in place, a mean over positions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Conv2d(3, 8, 3)
        self.end = nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.end(torch.relu(self.body(x))).flatten(1)


def test_an_activation_in_place_after_the_head_is_refused():
    model, images = Squeezing(), torch.rand(20, 3, 8, 8)
    with pytest.raises(ValueError, match=r"no layer's output is the output of the model.*end\.0"):
        extract_features(model, images)
    with pytest.raises(ValueError, match=r"'end\.0' give logits that are [\d.]+ % off the output"):
        extract_features(model, images, layer="end.0")
    head = LinearHead.from_torch(model.end[0])
    attached = attach(model, DICEDetector(head).fit(np.random.default_rng(0).random((30, 8))))
    with pytest.raises(ValueError, match=r"'end\.0' give logits that are [\d.]+ % off the output"):
        attached(images)


def test_inputs_that_the_model_writes_into_stay_as_they_were():
    class Normalising(Net):
        def forward(self, x):
            return super().forward(x.sub_(1))

    rows = ROWS.clone()
    extraction = extract_features(Normalising(), rows)
    assert torch.equal(rows, ROWS)
    np.testing.assert_array_equal(extraction.features, extract_features(Net(), ROWS - 1).features)


@dataclass
class Output:
    hidden: torch.Tensor
    predictions: torch.Tensor


FORMS = {
    "dict": lambda z: {"other": z[:, :1], "predictions": z},
    "dataclass": lambda z: Output(z * 0, z),
    "nested": lambda z: ([z[:, :2], {"deep": (z,)}], None),
    "object": lambda z: SimpleNamespace(loss=None, logits=z),
    "softmax": lambda z: z.softmax(1),
    "log-softmax": lambda z: z.log_softmax(1),
    "temperature": lambda z: z / 1.7,
    "calibrated": lambda z: (z / 1.7).softmax(1),
    "calibrated logarithm": lambda z: (z / 0.6).log_softmax(1),
    "sigmoid": lambda z: z.sigmoid(),
    "map": lambda z: z[..., None, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_head_is_found_whatever_form_its_logits_are_returned_in(form):
    model = Net(FORMS[form])
    for layer in (None, "fc"):
        extraction = extract_features(model, ROWS.split(16), layer=layer)
        assert extraction.layer == "fc"
        np.testing.assert_allclose(
            logits_of(extraction), Net().eval()(ROWS).detach(), rtol=1e-4, atol=1e-5
        )
    check_attached(model, ROWS, extraction)


@pytest.mark.parametrize("form", ["dict", "dataclass", "nested", "softmax", "temperature"])
def test_a_layer_that_does_not_give_the_output_is_refused_in_every_form(form):
    class Shifted(Net):
        def forward(self, x):
            return self.after(self.fc(torch.relu(self.body(x))) + 0.1 * x[:, :4])

    with pytest.raises(ValueError, match=r"layer 'fc' give logits that are [\d.]+ % off"):
        extract_features(Shifted(FORMS[form]), ROWS, layer="fc")


def test_rows_that_barely_differ_do_not_hide_a_difference():
    # The bias dominates the logits, as in networks that were not trained.
    class Shifted(Net):
        def forward(self, x):
            return self.fc(1e-3 * torch.relu(self.body(x)).flip(1)) + 0 * self.fc(x[:, :8])

    class Twice(Net):
        def forward(self, x):
            features = 1e-3 * torch.relu(self.body(x))
            return nn.functional.linear(features.flip(1), self.fc.weight, self.fc(features)[0])

    with pytest.raises(ValueError, match=r"% off the output"):
        extract_features(Twice(), ROWS, layer="fc")
    with pytest.raises(ValueError, match="ran 2 times"):
        extract_features(Shifted(), ROWS, layer="fc")


@pytest.mark.parametrize("after", [lambda z: (900 * z).softmax(1), lambda z: (900 * z).sigmoid()])
def test_probabilities_that_were_rounded_to_0_and_1_do_not_hide_a_difference(after):
    class Wrong(Net):
        def forward(self, x):
            return self.after(self.fc(torch.relu(self.body(x))).flip(1))

    with pytest.raises(ValueError, match="% off the output"):
        extract_features(Wrong(after), ROWS, layer="fc")


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_an_output_that_is_not_finite_is_not_that_of_finite_features(value):
    model = Net(lambda logits: torch.where(logits > logits.mean(), logits, value))
    with pytest.raises(ValueError, match="100 % off the output"):
        extract_features(model, ROWS, layer="fc")


def test_a_convolution_of_one_logit_has_two_rows_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 1, 1), nn.AdaptiveAvgPool2d(1)
    )
    images = torch.rand(10, 3, 6, 6)
    extraction = extract_features(model, images)
    assert extraction.head.weight.shape == (2, 6)
    check_attached(model, images, extraction)


def test_maps_as_wide_as_there_are_classes_are_told_from_tokens():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1)
    )
    assert extract_features(model, torch.rand(10, 3, 4, 4)).layer == "2"


def test_an_output_without_logits_is_named_as_unchecked():
    model = Net(lambda logits: logits.argmax(1))
    with pytest.warns(UserWarning, match=r"could not be checked.*shape \(40, 4\).*'fc'"):
        extraction = extract_features(model, ROWS, layer="fc")
    np.testing.assert_array_equal(extraction.features, extract_features(Net(), ROWS).features)


def test_a_linear_layer_that_does_more_is_refused():
    class Cosine(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.normalize(x))

    model = Net()
    model.fc = Cosine(8, 4)
    with pytest.raises(ValueError, match=r"its Cosine does more than weight times features"):
        extract_features(model, ROWS)


# Compiled models.


def counting_backend(runs):
    def backend(graph, example_inputs):
        def run(*inputs):
            runs.append(1)
            return graph(*inputs)

        return run

    return backend


@pytest.mark.parametrize("way", ["function", "method", "part"])
@pytest.mark.parametrize("has_run", [False, True])
def test_a_compiled_model_runs_uncompiled_and_stays_compiled(way, has_run):
    runs, model = [], Net().eval()
    backend = counting_backend(runs)
    if way == "function":
        compiled = torch.compile(model, backend=backend)
    elif way == "method":
        model.compile(backend=backend)
        compiled = model
    else:
        compiled = nn.Sequential(nn.Identity(), torch.compile(model, backend=backend)).eval()
    with torch.no_grad():
        if has_run:
            compiled(ROWS)
        expected = extract_features(Net(), ROWS)
        before = len(runs)
        extraction = extract_features(compiled, ROWS)
        assert len(runs) == before
        np.testing.assert_array_equal(extraction.features, expected.features)
        assert extraction.layer == ("1._orig_mod.fc" if way == "part" else "fc")
        assert extraction.head == expected.head
        check_attached(compiled, ROWS, extraction)
        compiled(ROWS)
        assert len(runs) > before


def test_the_name_of_a_layer_may_be_that_in_the_compiled_or_parallel_model():
    compiled = torch.compile(Net(), backend="eager")
    for model, prefix in ((compiled, "_orig_mod."), (nn.DataParallel(Net()), "module.")):
        extraction = extract_features(model, ROWS, layer=f"{prefix}fc")
        assert extraction.layer == "fc"


# Decoders, whose head runs on every token.


class Decoder(nn.Module):
    """The classifier of GPT-2, Llama and others: the last token that is not padding counts."""

    def __init__(self, n_classes=4, pool=None):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(30, 8, padding_idx=0)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.score, self.pool = nn.Linear(8, n_classes, bias=False), pool or self.last

    @staticmethod
    def last(logits, ids):
        places = (ids != 0).int() * torch.arange(ids.shape[1])
        return logits[torch.arange(len(logits)), places.argmax(1)]

    def forward(self, input_ids):
        hidden = self.rnn(self.embedding(input_ids))[0]
        return SimpleNamespace(logits=self.pool(self.score(hidden), input_ids), past=[hidden])


class LastToken(nn.Module):
    """A decoder without padding and without recurrence, which ONNX expresses."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.mix, self.score = nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, ids):
        return self.score(torch.tanh(self.mix(self.embedding(ids)).cumsum(1)))[:, -1]


def padded():
    ids = TOKENS.clone()
    for row, n_tokens in enumerate(torch.arange(20) % 8 + 1):
        ids[row, n_tokens:] = 0
    return ids


@pytest.mark.parametrize("n_classes", [4, 1])
def test_a_decoder_gives_the_features_of_the_token_that_it_pools(n_classes, tmp_path):
    model, ids = Decoder(n_classes).eval(), padded()
    last = (ids != 0).sum(1) - 1
    with torch.no_grad():
        hidden = model.rnn(model.embedding(ids))[0]
        expected = hidden[torch.arange(20), last].numpy()
        logits = model(ids).logits
    for layer in (None, "score"):
        extraction = extract_features(model, {"input_ids": ids}, layer=layer)
        assert extraction.layer == "score"
        np.testing.assert_array_equal(extraction.features, expected)
    output = check_attached(model, {"input_ids": ids}, extraction)
    assert torch.equal(output.logits, logits)


def test_a_decoder_with_its_score_in_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, ids = LastToken().eval(), TOKENS
    extraction = extract_features(model, ids)
    detector = DICEDetector(extraction.head, sparsity=0.2).fit(extraction.features)
    attached, path = attach(model, detector), tmp_path / "decoder.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(attached, (ids,), path, verbose=False)
    session = onnxruntime.InferenceSession(path)
    logits, scores = session.run(None, {session.get_inputs()[0].name: ids.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(ids), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, detector.score_samples(extraction.features), rtol=1e-5)


def test_a_mean_of_the_logits_of_all_tokens_is_that_of_the_features():
    model = Decoder(pool=lambda logits, ids: logits.mean(1)).eval()
    extraction = extract_features(model, [TOKENS])
    with torch.no_grad():
        expected = model.rnn(model.embedding(TOKENS))[0].mean(1)
    np.testing.assert_allclose(extraction.features, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "pool",
    [
        lambda logits, ids: logits,  # of every token
        lambda logits, ids: logits.amax(1),
        lambda logits, ids: logits.view(len(ids), -1, 4)[:, -1].relu(),
        lambda logits, ids: logits.reshape(-1, 4).reshape(len(ids), -1, 4)[:, -1],
    ],
    ids=["every", "largest", "activated", "reshaped"],
)
def test_a_decoder_that_pools_by_no_selection_or_mean_is_refused(pool):
    with pytest.raises(ValueError, match=r"no layer's output|one vector per sample|% off"):
        extract_features(Decoder(pool=pool), [TOKENS])


# Adapters, built as PEFT builds them.


class Lora(nn.Module):
    """PEFT's lora.Linear, which adds to a layer until it is merged into it."""

    def __init__(self, layer, scale=0.3):
        super().__init__()
        self.base_layer, self.merged = layer, False
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})
        nn.init.normal_(self.lora_B["default"].weight, std=scale)

    @property
    def weight(self):
        return self.base_layer.weight

    def merge(self):
        added = self.lora_B["default"].weight @ self.lora_A["default"].weight
        self.base_layer.weight.data += added
        self.merged = True

    def forward(self, x):
        result = self.base_layer(x)
        return result if self.merged else result + self.lora_B["default"](self.lora_A["default"](x))


class Ia3(nn.Module):
    """PEFT's ia3.Linear, which scales the input of a layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.ia3_l = layer, nn.Parameter(1 + 0.2 * torch.rand(layer.in_features))

    def forward(self, x):
        return self.base_layer(x * self.ia3_l)


class Saved(nn.Module):
    """PEFT's ModulesToSaveWrapper, which runs a trained copy of a layer."""

    def __init__(self, layer, is_trained=True):
        super().__init__()
        self.original_module = layer
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(layer)})
        if is_trained:
            nn.init.normal_(self.modules_to_save["default"].weight)

    @property
    def weight(self):
        return self.modules_to_save["default"].weight

    def forward(self, x):
        return self.modules_to_save["default"](x)


def adapted(body=None, head=None):
    model = Net()
    if body is not None:
        model.body = body(model.body)
    if head is not None:
        model.fc = head(model.fc)
    return model.eval()


def merged(layer):
    lora = Lora(layer)
    lora.merge()
    return lora


@pytest.mark.parametrize(
    ("body", "head", "layer"),
    [
        (Lora, None, "fc"),
        (Ia3, None, "fc"),
        (Lora, Saved, "fc.modules_to_save.default"),
        (None, lambda layer: Saved(layer, is_trained=False), "fc.modules_to_save.default"),
        (merged, merged, "fc.base_layer"),
        (Lora, Lora, "fc"),
        (Lora, Ia3, "fc.base_layer"),  # The scaled features enter the layer in it.
    ],
)
def test_adapted_models_need_no_merging(body, head, layer):
    model = adapted(body, head)
    state = copy.deepcopy(model.state_dict())
    extraction = extract_features(model, ROWS)
    assert extraction.layer == layer
    with torch.no_grad():
        np.testing.assert_allclose(logits_of(extraction), model(ROWS), rtol=1e-4, atol=1e-5)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    check_attached(model, ROWS, extraction)


def test_the_base_layer_of_an_adapted_head_is_refused():
    model = adapted(head=Lora)
    message = r"'fc\.base_layer' give logits that are [\d.]+ % off .*'fc' adapts it: name that one"
    with pytest.raises(ValueError, match=message):
        extract_features(model, ROWS, layer="fc.base_layer")


def test_a_wrapper_of_a_layer_is_refused_with_the_layers_in_it():
    message = r"'fc' is a Saved.*such as fc\.original_module, fc\.modules_to_save\.default"
    with pytest.raises(TypeError, match=message):
        extract_features(adapted(head=Saved), ROWS, layer="fc")


# Two heads.


class Distilled(Net):
    """DeiT's distilled classifier: the mean of two heads with features of their own."""

    def __init__(self):
        super().__init__()
        self.head_dist = nn.Linear(8, 4)

    def forward(self, x):
        features = self.body(x)
        return (self.fc(features.relu()) + self.head_dist(features.tanh())) / 2


def test_a_distilled_model_needs_the_name_of_a_head_and_is_explained():
    model = Distilled()
    with pytest.raises(ValueError, match=r"the mean of the layers 'fc' and 'head_dist'.*layer="):
        extract_features(model, ROWS)
    with pytest.warns(UserWarning, match=r"mean of the layers 'head_dist' and 'fc'.*alone"):
        extraction = extract_features(model, ROWS, layer="head_dist")
    with torch.no_grad():
        np.testing.assert_array_equal(extraction.features, model.body(ROWS).tanh())
    with pytest.warns(UserWarning, match=r"mean of the layers 'head_dist' and 'fc'"):
        check_attached(model, ROWS, extraction)


# One logit.


@pytest.mark.parametrize(
    "after",
    [
        lambda z: z,
        lambda z: z.squeeze(1),
        lambda z: z.sigmoid(),
        lambda z: torch.sigmoid(z / 2).squeeze(1),
    ],
    ids=["logit", "squeezed", "sigmoid", "calibrated"],
)
@pytest.mark.parametrize("score_func", ["msp", "energy"])
def test_a_head_of_one_logit_becomes_two_symmetric_rows(after, score_func):
    model = Net(after, n_classes=1)
    for layer in (None, "fc"):
        extraction = extract_features(model, ROWS, layer=layer)
        head = extraction.head
        weight = model.fc.weight.detach().numpy()
        np.testing.assert_array_equal(head.weight, np.concatenate([-weight, weight]) / 2)
        negative, positive = logits_of(extraction).T
        logit = Net(n_classes=1).eval()(ROWS)[:, 0].detach()
        np.testing.assert_allclose(positive - negative, logit, rtol=1e-4, atol=1e-6)
    detector = DICEDetector(head, sparsity=0, score_func=score_func).fit(extraction.features)
    scores = detector.score_samples(extraction.features)
    # The probability of the class that is predicted, and its logarithm's normaliser.
    if score_func == "msp":
        np.testing.assert_allclose(scores, torch.sigmoid(logit.abs()), rtol=1e-5)
    with torch.no_grad():
        _, attached = attach(model, detector)(ROWS)
    np.testing.assert_allclose(attached, scores, rtol=1e-5)


# Errors and wrappers.


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Linear(12, 12) for _ in range(30)))
        self.norm, self.classifier = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x):
        return self.classifier(self.norm(self.blocks(x))) ** 2


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (None, r"layer=: classifier, blocks\.29, blocks\.28, blocks\.27, blocks\.26 and 26 more$"),
        ("clasifier", r"no layer 'clasifier'; candidates: classifier, .* and 26 more$"),
        ("block.29", r"no layer 'block\.29'; candidates: blocks\.29, .* and 26 more$"),
    ],
)
def test_errors_list_the_likeliest_layers_only(layer, message):
    with pytest.raises(ValueError, match=message):
        extract_features(Deep(), ROWS, layer=layer)


def test_attach_names_the_likeliest_layers():
    detector = DICEDetector(LinearHead(np.ones((2, 3)))).fit(np.ones((5, 3)))
    with pytest.raises(ValueError, match=r"no layer of the model .*: classifier, blocks\.29, "):
        attach(Deep(), detector)


class NeuralNet:
    """skorch's estimator: `initialize` makes the module of the class that it was given."""

    def __init__(self, module):
        self.module = module

    def initialize_module(self):
        self.module_ = self.module()
        return self


def test_the_module_of_a_skorch_net_is_used():
    net = NeuralNet(Net)
    with pytest.raises(ValueError, match="the NeuralNet has no module yet: call its fit"):
        extract_features(net, ROWS)
    net.initialize_module()
    extraction = extract_features(net, ROWS)
    np.testing.assert_array_equal(extraction.features, extract_features(Net(), ROWS).features)
    check_attached(net, ROWS, extraction)


def test_the_first_batch_is_checked_while_iterating_too():
    model = Net(lambda logits: logits**2)
    with pytest.raises(ValueError, match="% off the output"):
        next(iterate_features(model, ROWS, layer="fc"))
    assert model.training


def test_an_attached_module_can_be_copied_and_called_after_an_error():
    model = Net().eval()
    extraction = extract_features(model, ROWS)
    detector = DICEDetector(extraction.head, sparsity=0).fit(extraction.features)
    attached = copy.deepcopy(attach(model, detector))
    with pytest.raises(RuntimeError):
        attached(ROWS[:, :5])
    with torch.no_grad():
        _, scores = attached(ROWS)
    np.testing.assert_allclose(scores, detector.score_samples(extraction.features), rtol=1e-5)
