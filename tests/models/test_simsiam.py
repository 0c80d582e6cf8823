"""SimSiam against its authors' step, written plainly; its predictors; what is published of them."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import simco_zoo

SMALL = {"proj_hidden_dim": 32, "proj_dim": 24, "pred_hidden_dim": 8}


def build(**kwargs) -> simco_zoo.models.SimSiam:
    torch.manual_seed(0)
    return simco_zoo.create_model("simsiam", backbone="test_resnet", **{**SMALL, **kwargs}).train()


@pytest.mark.parametrize("layers", [2, 3])
def test_five_steps_equal_the_authors(views, layers):
    """Their model: encoder with projector, predictor, D = -cos; their step: SGD with momentum and weight decay."""
    view1, view2 = (view.double() for view in views)
    model = build(proj_layers=layers).double()
    backbone, theirs = copy.deepcopy(model.backbone), []
    widths = [model.num_features, *[32] * (layers - 1), 24]
    for i in range(layers):
        theirs.append(nn.Linear(widths[i], widths[i + 1], bias=False))
        theirs.append(nn.BatchNorm1d(widths[i + 1], affine=i < layers - 1))
        if i < layers - 1:
            theirs.append(nn.ReLU(inplace=True))
    projector = nn.Sequential(*theirs).double()
    predictor = nn.Sequential(
        nn.Linear(24, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 24)
    ).double()
    projector.load_state_dict(model.projector.state_dict())
    predictor.load_state_dict(model.predictor.state_dict())

    reference = nn.ModuleList([backbone, projector, predictor]).train()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    ours_step = torch.optim.SGD(model.parameters(), **settings)
    their_step = torch.optim.SGD(reference.parameters(), **settings)
    criterion = nn.CosineSimilarity(dim=1)
    for _ in range(5):
        z1, z2 = projector(backbone(view1)), projector(backbone(view2))
        p1, p2 = predictor(z1), predictor(z2)
        expected = -(criterion(p1, z2.detach()).mean() + criterion(p2, z1.detach()).mean()) * 0.5
        loss = model.contrast(view1, view2)["loss"]
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        for optimizer, value in ((ours_step, loss), (their_step, expected)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for part, module in (("backbone", backbone), ("projector", projector), ("predictor", predictor)):
        state = module.state_dict()
        for name, tensor in model.get_submodule(part).state_dict().items():
            torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-6, msg=f"{part}.{name}")


def outputs(model, view):
    z = model.projector(model.backbone(view))
    return F.normalize(z, dim=1), F.normalize(model.predictor(z), dim=1)


@pytest.mark.parametrize("kind", ["none", "linear", "bias", "mirror"])
def test_loss_of_each_predictor(views, kind):
    model = build(predictor=kind)
    if kind == "bias":
        with torch.no_grad():
            model.predictor.bias.normal_()
    reference = copy.deepcopy(model)
    loss = model.contrast(*views)["loss"]
    loss.backward()
    (z1, p1), (z2, p2) = (outputs(reference, view) for view in views)
    if kind == "none":
        expected = -((z1 * z2.detach()).sum(1).mean() + (z2 * z1.detach()).sum(1).mean()) / 2
    elif kind == "mirror":
        expected = -((p1 * p2.detach()).sum(1).mean() + (p2 * p1.detach()).sum(1).mean()) / 2
    else:
        matrix = (
            (lambda z: z + reference.predictor.bias) if kind == "bias" else (lambda z: z @ reference.predictor.weight.T)
        )
        p1, p2 = F.normalize(matrix(z1), dim=1), F.normalize(matrix(z2), dim=1)
        expected = -((p1 * z2.detach()).sum(1).mean() + (p2 * z1.detach()).sum(1).mean()) / 2
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_the_inverse_predictor_learns_from_its_own_term_alone(views):
    model = build(predictor="inverse")
    reference = copy.deepcopy(model)
    model.contrast(*views)["loss"].backward()
    z, p = zip(
        *((z, reference.predictor(z)) for z in (reference.projector(reference.backbone(v)) for v in views)), strict=True
    )
    unit_z, unit_p = ([F.normalize(rows, dim=1) for rows in pair] for pair in (z, p))
    undone = [F.normalize(reference.inverse_predictor(rows.detach()), dim=1) for rows in p]
    encoder = -sum((unit_p[i] * undone[1 - i].detach()).sum(1).mean() for i in (0, 1)) / 2
    inverse = -sum((undone[i] * unit_z[i].detach()).sum(1).mean() for i in (0, 1)) / 2
    (encoder + inverse).backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_more_views_and_one_side(views):
    torch.manual_seed(3)
    third = torch.randn_like(views[0])
    both, one = build().eval(), build(symmetric=False).eval()
    pairs = [both.contrast(a, b)["loss"] for a, b in ((views[0], views[1]), (views[0], third), (views[1], third))]
    torch.testing.assert_close(both.contrast(*views, third)["loss"], torch.stack(pairs).mean())
    z2 = outputs(one, views[1])[0]
    torch.testing.assert_close(one.contrast(*views)["loss"], -(outputs(one, views[0])[1] * z2).sum(1).mean())


@pytest.mark.parametrize(("kind", "keys"), [
    ("mlp", {"0.weight", "1.weight", "4.running_mean", "predictor.0.weight", "predictor.3.bias"}),
    ("bias", {"0.weight", "predictor.bias"}),
    ("inverse", {"predictor.3.weight", "inverse_predictor.3.weight"}),
    ("none", {"0.weight"}),
])  # fmt: skip
def test_projector_and_predictor_are_published(kind, keys, tmp_path, views):
    model = build(predictor=kind)
    model.contrast(*views)
    folder = simco_zoo.save_pretrained(model, tmp_path / "s")
    saved = safetensors.torch.load_file(folder / "projector.safetensors")
    assert keys <= saved.keys()
    assert any(name.startswith("predictor") for name in saved) == (kind != "none")
    loaded = simco_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    assert loaded.method_config() == model.method_config()
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_the_naive_network_collapses():
    """Without a predictor, and without the batch norm that keeps the projections of a batch apart; else it does not."""

    def spread(kind, last_norm):
        torch.manual_seed(0)
        model = build(predictor=kind, last_norm=last_norm)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        for _ in range(40):
            image = torch.randn(8, 3, 32, 32)
            report = model.contrast(image + torch.randn_like(image), image + torch.randn_like(image))
            optimizer.zero_grad()
            report["loss"].backward()
            optimizer.step()
        return report["proj_std"].item()

    assert isinstance(build(last_norm=False).projector[-1], nn.Linear)
    assert spread("none", False) < 0.1
    assert spread("mlp", False) > 0.5 and spread("none", True) > 0.5


def test_arguments_out_of_range():
    with pytest.raises(ValueError, match="predictor is 'gru', but has to be one of mlp, bias, linear"):
        build(predictor="gru")
    with pytest.raises(ValueError, match="simsiam has no argument temperature"):
        build(temperature=0.1)
    for name in ("proj_layers", "proj_dim", "pred_hidden_dim", "proj_hidden_dim"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            build(**{name: 0})
