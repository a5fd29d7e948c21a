"""Kinds of fields: what each refuses, and that the message names the place, in one short line."""

import re

import pytest

from kdcache.schema import (
    FieldError,
    fields,
    flag,
    list_of,
    maybe,
    number,
    parse_json,
    plain,
    table_of,
    text,
    whole,
)

NAN, HUGE = float("nan"), 10**5000
KINDS = {
    "number": (number(0, 1), [0, 1, 0.5], [None, True, NAN, 1e999, -1, HUGE, "1", [], {}]),
    "any number": (number(), [-1e300, 7], [None, NAN, -1e999, HUGE, "1"]),
    "whole": (whole(1), [1, 2**63 - 1], [0, True, 1.0, 2**63, -HUGE, "1", None]),
    "text": (text(), ["", "a\nb"], [None, 1, b"a", "a" * 200_000]),
    "hash": (text("[0-9a-f]{4}"), ["12af"], ["12ag", "12af\n", 12]),
    "flag": (flag, [True, False], [0, 1, None, "true"]),
    "maybe": (maybe(whole()), [None, 3], [NAN, -1]),
    "list": (list_of(whole(), least=1, most=2), [[0], (1, 2)], [[], [1, 2, 3], [-1], {}, "12"]),
    "table": (table_of(whole()), [{}, {"a": 1}], [{1: 1}, {"a": NAN}, [], None]),
    "fields": (fields({"a": flag}, {"b": whole()}), [{"a": True, "c": NAN}], [{}, {"a": 1}, []]),
    "plain": (plain, [None, {"a": [1, "b", {"c": 0.5}]}], [NAN, HUGE, {1: 2}, [object()], b""]),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_takes_what_fits_and_names_what_does_not(name):
    kind, good, bad = KINDS[name]
    for value in good:
        kind(value)
    for value in bad:
        with pytest.raises(FieldError) as error:
            kind(value)
        assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_the_message_names_the_place():
    kind = fields({"views": list_of(fields({"box": list_of(whole(), least=2)}))})
    with pytest.raises(FieldError, match=re.escape("views[1].box[0] is -1, expected a whole")):
        kind({"views": [{"box": [0, 1]}, {"box": [-1, 1]}]})
    with pytest.raises(FieldError, match=re.escape("views[0].box is missing")):
        kind({"views": [{}]})


def test_values_that_hold_themselves_or_many_copies_of_one_are_refused_soon():
    loop, many = [], [1] * 10
    loop.append(loop)
    for _ in range(30):
        many = [many] * 10
    for value in (loop, many):
        with pytest.raises(FieldError, match="beyond any use"):
            plain(value)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
def test_json_has_finite_numbers_only(word):
    with pytest.raises(ValueError):
        parse_json(f'{{"a": [{word}]}}')
    assert parse_json('{"a": [1, -2.5e300]}') == {"a": [1, -2.5e300]}
