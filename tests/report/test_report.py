"""The report: its figures are the runs' own, it needs nothing else, and it says what it could not show."""

from __future__ import annotations

import base64
import csv
import importlib
import io
import json
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import timm
import yaml
from PIL import Image

import simco_zoo
from simco_zoo.training import pretrain
from tests.data.pictures import bright_and_dark


@pytest.fixture(scope="module")
def recipe():
    """Imports a command; a process of its own for each call would take most of the time, and so would curves.png."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simco_zoo.training.log.draw_curves", lambda *args: None)
        yield importlib.import_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes of 16 training and 6 test images."""
    return bright_and_dark(tmp_path_factory.mktemp("images"), 16, 6, (24, 24))


@pytest.fixture(scope="module")
def runs(recipe, folder, tmp_path_factory) -> dict[str, Path]:
    """Two pretraining runs and a fine-tuning."""
    root = tmp_path_factory.mktemp("runs")
    common = ["--backbone", "test_resnet", "--dataset", str(folder), "--batch-size", "8"]
    recipe("simco_zoo.cli.pretrain").main([
        "--model", "simco", *common, "--epochs", "2", "--knn-every", "1", "--output", str(root / "one"),
    ])  # fmt: skip
    recipe("simco_zoo.cli.pretrain").main([
        "--model", "simmoco", *common, "--epochs", "1", "--lr", "0.05", "--dt-m", "5", "--temperature", "0.1",
        "--no-linear", "--output", str(root / "two"),
    ])  # fmt: skip
    recipe("simco_zoo.cli.finetune").main([
        "--model", f"local-dir:{root / 'one' / 'last'}", "--dataset", str(folder), "--batch-size", "8",
        "--epochs", "1", "--min-scale", "0.5", "--output", str(root / "tuned"),
    ])  # fmt: skip
    return {name: root / name for name in ("one", "two", "tuned")}


@pytest.fixture
def few_curves(recipe, monkeypatch) -> None:
    monkeypatch.setattr(recipe("simco_zoo.report.sections"), "PANELS", {"loss": "loss"})


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, text, tables."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.tables, self.open = "", [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def rows(self, heading: str) -> dict[str, dict[str, str]]:
        """Returns the cells by run and heading of the table that has a heading."""
        table = next(table for table in self.tables if heading in table[0])
        return {row[0]: dict(zip(table[0], row, strict=True)) for row in table[1:]}

    @property
    def images(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        return [base64.b64decode(source.split(",", 1)[1], validate=True) for source in sources]


def report(recipe, capsys, *arguments: object) -> tuple[Page, dict]:
    capsys.readouterr()
    assert recipe("simco_zoo.cli.report").main([*map(str, arguments)]) == 0
    printed = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return Page(Path(printed["report"])), printed


def log_of(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(recipe, runs, tmp_path_factory) -> tuple[Page, dict, Path]:
    """The report on all three runs."""
    output, out = tmp_path_factory.mktemp("report") / "all.html", io.StringIO()
    stdout, sys.stdout = sys.stdout, out
    try:
        recipe("simco_zoo.cli.report").main([*map(str, runs.values()), "--output", str(output)])
    finally:
        sys.stdout = stdout
    return Page(output), json.loads(out.getvalue().strip().splitlines()[-1]), output


def test_the_page_needs_nothing_else(whole):
    page, printed, output = whole
    assert printed["report"] == str(output)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a", "base", "form"}
    text = output.read_text()
    assert "@import" not in text and "url(" not in text
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on") and name not in ("href", "srcset")
            assert tag == "img" or "//" not in (value or ""), (tag, name)
    assert not page.open  # every element is closed
    assert any(attributes.get("name") == "viewport" for tag, attributes in page.tags if tag == "meta")
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")


def test_pictures_are_in_the_page_and_beside_it(whole, runs):
    page, printed, output = whole
    assert printed["runs"] == [str(run) for run in runs.values()]
    files = [Path(path) for path in printed["pictures"]]
    assert {file.parent for file in files} == {output.with_name("all_files")}
    assert {*files} == {*output.with_name("all_files").iterdir()}
    assert page.images == [file.read_bytes() for file in files]
    for file in files:
        with Image.open(file) as image:
            assert image.format == "PNG" and min(image.size) >= 100
            image.load()
            assert np.asarray(image.convert("L")).std() > 5  # not blank
    names = [file.stem for file in files]
    assert names[-12:] == [
        f"{i}-{name}-{what}"
        for i, name in enumerate(("one", "two", "tuned"), start=1)
        for what in ("neighbors", "views", "knn", "map")
    ]
    drawn = {name.removeprefix("curves-") for name in names[:-12]}
    assert drawn >= {"loss", "cross_entropy", "knn_top1", "val_top1", "effective_rank", "uniformity", "alignment"}
    assert drawn >= {"proj_std", "log_w_q50"} and "lr" not in drawn


def test_figures_are_those_of_the_runs(whole, runs):
    rows = whole[0].rows("kNN, last")
    assert [*rows] == ["one", "two", "tuned"]
    for name in ("one", "two"):
        log, summary = log_of(runs[name]), json.loads((runs[name] / "summary.json").read_text())
        measured = [(float(row["knn_top1"]), row["epoch"]) for row in log if row["knn_top1"]]
        highest = max(value for value, _ in measured)
        first = next(epoch for value, epoch in measured if value == highest)
        assert rows[name]["kNN, last"] == f"{summary['knn_top1']:.2f}" == f"{measured[-1][0]:.2f}"
        assert rows[name]["kNN, best"] == f"{highest:.2f} (epoch {first})"
        assert rows[name]["images/s"] == f"{summary['images_per_second']:.0f}"
        assert rows[name]["time"] == f"{summary['seconds']:.0f} s"
        assert rows[name]["epochs"] == log[-1]["epoch"] and rows[name]["fine-tuned"] == "–"
        assert rows[name]["batch"] == "8" and rows[name]["images"] == "32 of 24 px"
        assert rows[name]["backbone"] == "test_resnet, small stem"
    assert rows["one"]["linear"] == f"{json.loads((runs['one'] / 'summary.json').read_text())['linear_top1']:.2f}"
    assert rows["two"]["linear"] == "–"
    assert (rows["one"]["method"], rows["one"]["temperature"]) == ("SimCo", "0.1 / 1")
    assert (rows["two"]["method"], rows["two"]["temperature"]) == ("SimMoCo", "0.1 / 0.5")
    tuned = json.loads((runs["tuned"] / "summary.json").read_text())
    assert rows["tuned"]["fine-tuned"] == f"{tuned['top1']:.2f} (epoch {tuned['epoch']})"
    assert rows["tuned"]["method"] == "SimCo, fine-tuned" and rows["tuned"]["temperature"] == "–"

    setup = whole[0].rows("hardware")
    section = json.loads((runs["one"] / "last" / "config.json").read_text())["simco_zoo"]
    assert setup["one"]["hardware"] == section["hardware"]
    assert f"timm {timm.__version__}" in setup["one"]["versions"]
    assert {row["kind"] for row in setup.values()} == {"pretraining", "fine-tuning"}


def test_curves_are_those_of_the_logs(recipe, runs, tmp_path, monkeypatch):
    """Every value as log.csv has it; the loss of fine-tuning has a panel of its own."""
    module, drawn = recipe("simco_zoo.report.sections"), {}
    monkeypatch.setattr(module, "draw_runs", lambda path, logs, column, title: drawn.update({column: logs}))
    module.curves_section(recipe("simco_zoo.report.runs").read_runs(runs.values()), tmp_path)
    for name, run in runs.items():
        for column in drawn:
            source = {"cross_entropy": "loss" if name == "tuned" else "", "loss": "" if name == "tuned" else "loss"}
            expected = [row.get(source.get(column, column)) or None for row in log_of(run)]
            assert [row.get(column) for row in drawn[column][name]] == [v and float(v) for v in expected], (
                name,
                column,
            )


def test_settings_that_differ(whole):
    """No more and no less; one run's temperature was spelled out, and is the other's default."""
    rows = whole[0].rows("dt_m")
    assert rows == {
        "one": {"run": "one", "dt_m": "10.0", "epochs": "2", "knn_every": "1", "linear": "yes", "lr": "0.03",
                "model": "simco"},
        "two": {"run": "two", "dt_m": "5.0", "epochs": "1", "knn_every": "5", "linear": "no", "lr": "0.05",
                "model": "simmoco"},
    }  # fmt: skip


def test_names_are_escaped(recipe, runs, tmp_path, capsys, few_curves):
    name = "<script>alert('1')&amp;"
    shutil.copytree(runs["tuned"], tmp_path / name)
    settings = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
    settings["dataset"] = '/no/such/"><script>alert(2)'
    (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings))
    page, printed = report(recipe, capsys, tmp_path / name, "--title", "<b>x</b> & y")
    assert not {tag for tag, _ in page.tags} & {"script", "b"}
    assert name in page.text and "<b>x</b> & y" in page.text and '/no/such/"><script>alert(2)' in page.text
    assert printed["report"] == str(tmp_path / name / "report.html")  # of one run, within it


def test_every_text_is_escaped(recipe, tmp_path):
    """Wherever a text of a user's may stand."""
    nasty, module = "<script>\"'&amp;</td>", recipe("simco_zoo.report.page")
    Image.new("RGB", (1, 1)).save(tmp_path / "p.png")
    table = module.Table({nasty: {nasty: nasty, "other": 1}}, nasty, nasty)
    picture = module.Picture(tmp_path / "p.png", nasty, nasty)
    section = module.Section(nasty, [table], [nasty], [picture], color="#123456")
    (tmp_path / "page.html").write_text(module.render_page(nasty, nasty, module.Table({}), [section]))
    page = Page(tmp_path / "page.html")
    assert not page.open and "script" not in {tag for tag, _ in page.tags}
    assert page.rows("other") == {nasty: {"run": nasty, nasty: nasty, "other": "1"}}
    values = [value for _, attributes in page.tags for value in attributes.values()]
    assert values.count(nasty) == 2 and page.text.count(nasty) == 11  # alt and data-label; the rest is text


def test_columns_that_nobody_fills_are_left_out(recipe, tmp_path):
    module = recipe("simco_zoo.report.page")
    assert module.Table({"a": {"x": None, "y": 0}, "b": {"x": ""}}).headings == ["y"]
    assert module.Table({"a": {"x": None}}).headings == []
    section = module.Section(
        "s", [module.Table({"a": {"x": True, "y": False, "z": 1}}), module.Table({}, "differences")]
    )
    (tmp_path / "page.html").write_text(module.render_page("t", "l", module.Table({}), [section]))
    page = Page(tmp_path / "page.html")
    assert page.tables == [[["run", "x", "y", "z"], ["a", "yes", "no", "1"]]] and "None." in page.text


def test_missing_data_are_said(recipe, runs, tmp_path, capsys, few_curves):
    shutil.copytree(runs["one"], tmp_path / "moved")
    settings = yaml.safe_load((tmp_path / "moved" / "config.yaml").read_text())
    settings["dataset"] = "/no/such/folder"
    (tmp_path / "moved" / "config.yaml").write_text(yaml.safe_dump(settings))
    page, printed = report(recipe, capsys, tmp_path / "moved", "--output", tmp_path / "r.html")
    assert page.text.count("images cannot be read here: there is no folder /no/such/folder") == 1
    assert page.rows("kNN, last")["moved"]["method"] == "SimCo" and len(page.images) == 1
    assert [Path(path).name for path in printed["pictures"]] == ["curves-loss.png"]
    with pytest.raises(ValueError, match="no folder /no/such/other"):  # what the user names has to be there
        recipe("simco_zoo.cli.report").main(
            [str(runs["one"]), "--dataset", "/no/such/other", "--output", str(tmp_path / "x.html")]
        )
    assert not (tmp_path / "x.html").exists()


def test_a_run_in_progress(recipe, runs, tmp_path, capsys):
    run = tmp_path / "begun"
    run.mkdir()
    shutil.copy(runs["one"] / "config.yaml", run)
    lines = (runs["one"] / "log.csv").read_text().splitlines(keepends=True)
    (run / "log.csv").write_text("".join(lines[:2]))
    page, printed = report(recipe, capsys, run)
    row = page.rows("epochs")["begun"]
    assert row["epochs"] == "1 of 2, not finished" and row["method"] == "SimCo" and row["backbone"] == "test_resnet"
    assert "nothing is published yet" in page.text
    assert all("curves-" in path for path in printed["pictures"]) and len(printed["pictures"]) >= 6
    # a summary of an earlier run in the same folder is not this one's
    shutil.copy(runs["one"] / "summary.json", run)
    cells = recipe("simco_zoo.report.facts").results(recipe("simco_zoo.report.runs").read_runs([run])[0])
    assert cells["epochs"] == "1 of 2, not finished" and cells["linear"] is None


def test_without_labels(recipe, folder, tmp_path, capsys, few_curves):
    """A run from Python, whose folder names no data; images without classes and without a test split."""
    (tmp_path / "plain").mkdir()
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        shutil.copy(path, tmp_path / "plain" / f"{i}.png")
    model = simco_zoo.create_model("simco", backbone="test_resnet", small_stem=True)
    pretrain(model, tmp_path / "plain", output=tmp_path / "run", epochs=1, batch_size=8)
    with pytest.raises(ValueError, match="names them; pass --dataset"):
        recipe("simco_zoo.report.runs").load_sample(
            recipe("simco_zoo.report.runs").read_runs([tmp_path / "run"])[0], None, 8, 8
        )
    page, printed = report(recipe, capsys, tmp_path / "run", "--dataset", tmp_path / "plain")
    assert "8 training images (the run had no test images)" in page.text and "another class" not in page.text
    neighbors = next(path for path in printed["pictures"] if path.endswith("neighbors.png"))
    values = np.asarray(Image.open(neighbors).convert("RGB")).reshape(-1, 3).tolist()
    assert [0xD1, 0x24, 0x2F] not in values


def test_samples_are_bounded_and_apart(recipe, runs, folder, monkeypatch):
    module = recipe("simco_zoo.report.runs")
    one = module.read_runs([runs["one"]])[0]
    opened, open_image = [], simco_zoo.data.folders.open_image
    monkeypatch.setattr("simco_zoo.data.folders.open_image", lambda file: opened.append(file) or open_image(file))
    sample = module.load_sample(one, None, 10, 4)
    assert len(opened) == 14 + 4  # of 32 and 12: a large data set is not decoded as a whole
    assert sample.held_out and (len(sample.bank), len(sample.test)) == (10, 4)
    assert sample.bank.split == "train" and sample.test.split == "test"
    assert len({*sample.bank.labels.tolist()}) == 2  # not the first ten, which are all bright
    without = module.Run(**{**vars(one), "settings": {**one.settings, "test_split": "none"}})
    sample = module.load_sample(without, None, 20, 5)
    assert not sample.held_out and len({*sample.bank.names, *sample.test.names}) == 25
    # a stream has no labels and no test split
    streamed = {**one.settings, "streaming": True, "dataset": str(folder / "train"), "epoch_images": 32}
    sample = module.load_sample(module.Run(**{**vars(one), "settings": streamed}), None, 12, 4)
    assert (len(sample.bank), len(sample.test), sample.bank.labels) == (13, 3, None)
    assert sample.bank.images.shape[1:] == (3, 24, 24)


def test_views_are_the_runs_own(recipe, runs):
    module = recipe("simco_zoo.report.runs")
    one, tuned = module.read_runs([runs["one"], runs["tuned"]])
    assert module.views_of(one).preset == simco_zoo.data.PRESETS["cifar"] and module.views_of(one).size == 24
    crops = module.views_of(tuned).preset
    assert crops.scale == (0.5, 1.0) and crops.jitter == crops.grayscale == crops.blur == 0 and crops.flip == 0.5
    cfg = json.loads((runs["tuned"] / "best" / "config.json").read_text())["pretrained_cfg"]
    assert [*crops.mean] == cfg["mean"] and [*crops.std] == cfg["std"]


def test_runs_of_the_same_name_are_told_apart(recipe, runs, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        shutil.copy(runs["one"] / "log.csv", tmp_path / parent / "run")
    found = recipe("simco_zoo.report.runs").read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run"])
    assert [run.name for run in found] == [str(Path("a", "run")), str(Path("b", "run"))]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "is not a run"),
        ("published", "is a published folder; pass the run"),
        ("started", "has no log.csv yet"),
        ("header", "has no epoch yet"),
        ("empty", "has no epoch yet"),
        ("other csv", "is not the log of a run"),
        ("damaged yaml", "config.yaml is damaged"),
        ("damaged json", "summary.json is damaged"),
        ("twice", "is given twice"),
        ("no html", "ends in .html"),
        ("folder as output", "ends in .html"),
        ("not writable", "nothing can be written to"),
    ],
)
def test_errors_say_what_to_do(what, message, recipe, runs, tmp_path):
    run, arguments = tmp_path / "run", ["--output", str(tmp_path / "r.html")]
    if what != "nothing":
        run.mkdir()
        shutil.copy(runs["one"] / "config.yaml", run)
    if what not in ("nothing", "started"):
        shutil.copy(runs["one"] / "log.csv", run)
    if what == "published":
        run = runs["one"] / "last"
    elif what == "header":
        (run / "log.csv").write_text("epoch,step,loss\n")
    elif what == "empty":
        (run / "log.csv").write_text("")
    elif what == "other csv":
        (run / "log.csv").write_text("name,age\nx,3\n")
    elif what == "damaged yaml":
        (run / "config.yaml").write_text("a: [1")
    elif what == "damaged json":
        (run / "summary.json").write_text("{")
    elif what == "twice":
        arguments.insert(0, str(tmp_path / "run" / ".." / "run"))
    elif what == "no html":
        arguments = ["--output", str(tmp_path / "r.png")]
    elif what == "folder as output":
        (tmp_path / "r.html").mkdir()
    elif what == "not writable":
        arguments = ["--output", str(run / "log.csv" / "r.html")]
    with pytest.raises((ValueError, OSError)) as error:
        recipe("simco_zoo.cli.report").main([str(run), *arguments])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "r.html").is_file() and not (tmp_path / "r_files").exists()
