import json

import pytest

from dft_cluster.errors import InputError
from dft_cluster.facts.records import Record, load_csv, load_json, parse_json, read_text


def write(tmp_path, content, name="facts.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_lines_and_list_hold_the_same_records(tmp_path):
    rows = [{"a": "1"}, {"a": "2\u2028still the same line"}]
    lines = load_json(write(tmp_path, "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"))
    listed = load_json(write(tmp_path, " \n" + json.dumps(rows), "facts.json"))
    assert [r.fields for r in lines] == [r.fields for r in listed] == rows
    assert [r.where for r in lines] == ["facts.jsonl, line 1", "facts.jsonl, line 2"]
    assert [r.where for r in listed] == ["facts.json, record 1", "facts.json, record 2"]


def test_a_blank_line_counts_for_the_line_but_not_for_the_record(tmp_path):
    second = load_json(write(tmp_path, '{"a": "1"}\n\n{"a": "2"}\n'))[1]
    assert (second.where, second.number) == ("facts.jsonl, line 3", 2)


def test_numbers_stay_as_they_are_written(tmp_path):
    (record,) = load_json(write(tmp_path, '{"old": 1.50, "new": 123456789012345678901234567890, "gap": NaN}'))
    assert record.fields == {"old": "1.50", "new": "123456789012345678901234567890", "gap": None}


@pytest.mark.parametrize("content", [b'\xef\xbb\xbf{"a": "x"}', b'\xef\xbb\xbf[{"a": "x"}]'])
def test_a_byte_order_mark_is_accepted(tmp_path, content):
    assert load_json(write(tmp_path, content))[0].fields == {"a": "x"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        (" \n\t\n", "the file is empty"),
        ("[]", "no records"),
        ('{"a": 1}\n{"a": \n', r"facts\.jsonl, line 2, column \d+: broken JSON"),
        ('[{"a": 1},\n{"a" 2}]', r"facts\.jsonl, line 2, column \d+: broken JSON"),
        ('{"a": 1} {"a": 2}', r"line 1, column \d+: broken JSON"),
        ('{"a": 1}\n7\n', r"line 2: a record must be an object .* '7'"),
        ('[{"a": 1}, ["b"]]', r"record 2: a record must be an object .* a list"),
        (b'{"a": "ok"}\n{"a": "M\xfcnchen"}\n', r"facts\.jsonl, line 2: byte 0xfc is not UTF-8"),
        ('{"a": "x"}'.encode("utf-16"), r"line 1: byte 0xff is not UTF-8"),
        ("[" * 100_000, "nested too deep|broken JSON"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        load_json(write(tmp_path, content))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.json: there is no such file"):
        read_text(str(tmp_path / "nowhere.json"))
    with pytest.raises(InputError, match="not readable as a file"):
        read_text(str(tmp_path))
    with pytest.raises(InputError, match="not readable as a file"):
        read_text("a\0b")


def test_csv_rows_carry_their_line(tmp_path):
    rows = load_csv(write(tmp_path, '\ufeffprompt,old\n"one,\ntwo",x\n\nthree,y\n', "f.csv"))
    assert [row.fields for row in rows] == [
        {"prompt": "one,\ntwo", "old": "x"},
        {"prompt": "three", "old": "y"},
    ]
    assert [row.where for row in rows] == ["f.csv, line 3", "f.csv, line 5"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("prompt,old\na,b,c\n", r"f\.csv, line 2: more cells than the header has \(prompt, old\)"),
        ('prompt,old\n"a"b,c\n', r"f\.csv, line 2: not readable as CSV"),
        ("prompt,old\n", "no records"),
    ],
)
def test_what_is_wrong_with_a_csv_is_named(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        load_csv(write(tmp_path, content, "f.csv"))


def record(**fields):
    return Record(fields, "f, line 7", 7)


def test_texts_lays_lists_flat_and_drops_the_empty():
    assert record(a=[[" x ", ""], "y", None, 3]).texts("a") == ("x", "y", "3")
    assert record(a=None, b="z").texts("a", "b") == ("z",)
    assert record().texts("a") == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"b": "x", "c": "y"}, r"f, line 7: the field `a` or `A` is missing; the fields there are: `b`, `c`"),
        ({}, "the fields there are: none"),
        ({"A": " "}, "`a` or `A` is empty"),
        ({"a": {"str": "x"}}, "`a` holds an object; it needs text"),
        ({"a": [True]}, "`a` holds True"),
        ({"a": "\ud800"}, "`a` holds a lone surrogate"),
    ],
)
def test_a_text_that_is_not_there_is_named_with_its_place(fields, said):
    with pytest.raises(InputError, match=said):
        record(**fields).text("a", "A")


def test_inside_names_the_outer_field():
    with pytest.raises(InputError, match="in `a`: the field `b` is missing"):
        record(a={}).inside("a").text("b")
    with pytest.raises(InputError, match="`a` is 'x'; it needs an object"):
        record(a="x").inside("a")


def test_the_tally_is_shared_by_a_file():
    first, second = parse_json('{"a": 1}\n{"a": 2}', "f")
    first.note("left out")
    second.note("left out")
    assert first.tally == {"left out": 2}
