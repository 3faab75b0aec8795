"""Data cards: what they accept, and errors with path, line and nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest
from rootfiles import card_content

from hlt_train.data.card import Card, load_card
from hlt_train.data.trigger_card import parse_rate
from hlt_train.errors import UsageError

TEXT = """\
format: hlt-train/card
version: 1
name: example
tree: Events
example: event
identity: [run, luminosityBlock, event]
selection: L1_HTT280 == 1
samples:
  hh:  {files: [hh.root], selection: label == 1}
  qcd: {files: "qcd_*.root"}
new_variables: {logpt: log(Jet_pt)}
inputs:
  event: {available: online, vars: {ht: {centre: auto, scale: auto, clip: [-5, 5]}, met: }}
  jets:  {length: 10, pad_mode: constant, vars: {Jet_pt: {pad: 0}, logpt: {}}}
  short: [npv, rho]
nan: refuse
labels: {classes: [qcd, hh], by: sample}
weights: {expression: 1, balance: true, negative: keep}
splits: {by: hash, fractions: {train: .6, validation: .1, test: .3}}
observers: [nPU]
trigger:
  discriminant: {signal: hh, background: [qcd]}
  rate: {qcd: {input_rate: 8 kHz}}
  working_points: {tight: 50 Hz, loose: 200, mis: mistag 1%, eff: eff 0.8}
  reference: {cut: "(ht > {ht}) & (btag4 > {b})", thresholds: {ht: [300, 400], b: auto}}
  variables: [ht]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "card.yaml"
    path.write_text(text)
    return path


def test_a_card_loads_and_round_trips(tmp_path: Path) -> None:
    card = load_card(write(tmp_path, TEXT))
    assert card.samples["hh"].files == [str(tmp_path / "hh.root")]
    assert card.inputs["short"].length is None
    assert list(card.inputs["event"].vars) == ["ht", "met"]
    assert card.trigger is not None
    assert card.trigger.rate["qcd"].input_rate == 8000.0
    assert [str(p) for p in card.trigger.working_points.values()] == ["50 Hz", "200 Hz", "mistag 1%", "eff 80%"]
    assert card.trigger.columns == {"ht", "btag4"}
    assert card.trigger.reference is not None
    assert card.trigger.reference.expression({"ht": 300.0, "b": 0.5}) == "(ht > (300.0)) & (btag4 > (0.5))"
    document = card.model_dump(mode="json")
    assert Card.model_validate(document) == card
    assert Card.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize("name", ["toy_jets", "toy_events", "toy_topology", "toy_cells"])
def test_embedded_cards_load_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_card(name).name == name


def test_an_unknown_card_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, TEXT)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        load_card("toy_jet")
    assert caught.value.near[0] == "toy_jets"
    with pytest.raises(UsageError) as caught:
        load_card("cards.yaml")
    assert "card.yaml" in caught.value.near


@pytest.mark.parametrize(
    ("old", "new", "message", "near"),
    [
        ("scale: auto", "scal: auto", r"inputs\.event\.vars\.ht\.scal \(line 13\): unknown key 'scal'", "scale"),
        ("centre: auto", "center: auto", r"unknown key 'center'", "centre"),
        ("observers:", "observer:", r"observer \(line 20\): unknown key", "observers"),
        ("trigger:", "triger:", r"triger \(line 21\): unknown key", "trigger"),
        ("fractions:", "fraction:", r"splits\.fraction \(line 19\)", "fractions"),
        ("input_rate:", "input_rat:", r"trigger\.rate\.qcd\.input_rat \(line 23\)", "input_rate"),
        ("{files: [hh.root],", "{file: [hh.root],", r"samples\.hh\.file \(line 9\)", "files"),
        ("nan: refuse", "nan: refuze", r"nan \(line 16\): expected 'refuse' or expected a valid number", None),
        ("log(Jet_pt)", "lag(Jet_pt)", r"new_variables\.logpt \(line 11\): unknown function 'lag'", None),
        ("length: 10", "length: ten", r"inputs\.jets\.length \(line 14\): expected a valid integer", None),
        ("length: 10", "length: 0", r"inputs\.jets\.length \(line 14\): expected greater than or equal to 1", None),
        ("clip: [-5, 5]", "clip: [5, -5]", r"clip needs \[low, high\]", None),
        ("8 kHz", "8 kg", r"input_rate \(line 23\): expected a rate such as '8 kHz'", None),
        ("50 Hz", "-50 Hz", r"a rate must be above 0", None),
        ("mistag 1%", "mistag 300%", r"'mistag' is a fraction below 1", None),
        ("(btag4 > {b})", "(btag4 > {c})", r"threshold '\{c\}' of the cut is not in 'thresholds'", None),
        ("(btag4 > {b})", "(btag4 > 1)", r"threshold 'b' does not occur", None),
        ("signal: hh", "signal: hhh", r"trigger\.discriminant names 'hhh'", None),
        ("signal: hh", "signal: qcd", r"both signal and background", None),
        ("rate: {qcd:", "rate: {qcdd:", r"trigger\.rate names 'qcdd'", None),
        ("nan: refuse", "nan: refuse\nnan: 0", r"key 'nan' is given twice", None),
        ("classes: [qcd, hh]", "classes: [qcd, hh, tt]", r"class 'tt' has no sample", None),
        ("classes: [qcd, hh]", "classes: [qcd, HH]", r"sample 'hh' has class 'hh', which is not in labels.classes", None),
        ("classes: [qcd, hh], by: sample", "classes: [qcd, hh], by: {hh: hh}", r"gives no class for sample 'qcd'", None),
        ("by: sample}", "by: sample, expression: label}", r"either 'by' or 'expression'", None),
        ("train: .6", "train: 1.6", r"sum to at most 1", None),
        ("train: .6", "trane: .6", r"splits\.fractions", None),
        ("{by: hash, fractions", "{by: expression, fractions", r"takes an entry per split", None),
        ("version: 1", "version: 2", r"version \(line 2\): expected 1", None),
        ("length: 10, pad_mode: constant", "length: 10, pad_mode: wrap", r"pad_mode \(line 14\): expected 'constant'", None),
        ("example: event", "example: event\nobject_selection: Jet_pt > 30", r"object_selection needs 'example: <Collection>'", None),
        ("  variables: [ht]", "  event_score: max", r"for per-object examples", None),
        ("  rate: {qcd: {input_rate: 8 kHz}}\n", "", r"working point 'tight' asks for a rate", None),
        ("example: event", "example: object", r"objects have no rate without trigger.event_score", None),
        ("[npv, rho]", "[npv, npv]", r"a variable is listed twice", None),
        ("samples:\n", "samples:\n x\n", r"not YAML", None),
    ],
)
def test_errors_say_where(tmp_path: Path, old: str, new: str, message: str, near: str | None) -> None:
    assert old in TEXT
    with pytest.raises(UsageError, match=message) as caught:
        load_card(write(tmp_path, TEXT.replace(old, new, 1)))
    assert str(tmp_path / "card.yaml") in caught.value.where
    if near is not None:
        assert caught.value.near[0] == near


def test_several_problems_come_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_card(write(tmp_path, TEXT.replace("nan: refuse", "nan: x").replace("observers:", "observer:")))
    assert "nan (line 16)" in caught.value.what
    assert "observer (line 20)" in caught.value.what


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just text"])
def test_documents_that_are_no_card(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        load_card(write(tmp_path, text))


def test_a_binary_file_is_no_card(tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    path.write_bytes(b"root\x00\x00\xf7\x9c\xff\xfe")
    with pytest.raises(UsageError, match="not text"):
        load_card(path)


def test_missing_keys_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the document \(line 1\): 'labels' is missing"):
        load_card(write(tmp_path, "samples: {a: {files: x.root}}\ninputs: {e: [x]}\n"))


def test_splits_by_files_take_one_path_or_a_list(tmp_path: Path) -> None:
    content = card_content("x.root", splits={"by": "files", "train": "a.root", "test": ["b.root", "c.root"]})
    assert Card.model_validate(content).splits.train == ["a.root"]


@pytest.mark.parametrize(("text", "hertz"), [("8 kHz", 8e3), ("50Hz", 50.0), ("0.1 MHz", 1e5), (100, 100.0), ("1e2 hz", 100.0)])
def test_rates(text: str | int, hertz: float) -> None:
    assert parse_rate(text) == pytest.approx(hertz, rel=1e-12)
