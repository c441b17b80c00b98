import pytest

from ossicle.corpora import mls_descriptions
from ossicle.evaluate.meta import ATTRIBUTES, accuracy, attribute_metrics, attributes, majority

REFERENCES = [
    "slowly, male, clear",
    "slowly, female, clear",
    "fast, female, noisy",
    "slowly, female, clear",
]
SAID = ["slowly, male, clear", "Slowly, male, noisy", "fast, female", "female, slowly, clear"]


def test_attributes_are_those_of_the_corpus():
    assert ATTRIBUTES == mls_descriptions.ATTRIBUTES


def test_answers_are_read_by_place_or_by_name():
    assert attributes("slowly, Male") == {"speaking_rate": "slowly", "gender": "male"}
    assert attributes("Gender: male, speaking rate: slowly") == attributes("slowly, male")
    assert attributes("a, b, c, d, e, f, g, h")["attribute 8"] == "h"
    assert attributes("") == {}


def test_accuracy_by_hand():
    assert accuracy(SAID, REFERENCES).value == pytest.approx(100 * (3 + 1 + 2 + 1) / 12)
    each = {name: metric(SAID, REFERENCES, None).value for name, metric in attribute_metrics(REFERENCES).items()}
    assert each == {
        "accuracy/speaking_rate": 75,
        "majority/speaking_rate": 75,
        "accuracy/gender": 50,  # 1 and 3: the last has the rate in its place
        "majority/gender": 75,
        "accuracy/noise": 50,
        "majority/noise": 75,
    }
    assert majority(SAID, REFERENCES).value == 75
    assert majority([""] * 4, REFERENCES).value == 75


def test_any_reference_counts_attribute_by_attribute():
    assert accuracy(["slow, male"], [["slowly, male", "slow, female"]]).value == 100


def test_what_is_not_asked_for_is_ignored():
    assert accuracy(["slow, male, clear"], ["slow, male"]).value == 100
    assert accuracy(["x"], [""]).value == 0
