import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rolloutlib.runs.notebook import Parameter, Refused
from rolloutlib.runs.sets import combinations, crossed, read_choices, read_sets

DECLARED = {
    "ratio": Parameter("ratio", "float", 0.0),
    "steps": Parameter("steps", "int", 1),
    "prompt": Parameter("prompt", "str", ""),
    "layers": Parameter("layers", "list[int]", []),
}


def sets_of(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    return read_sets(path, DECLARED)


def test_yaml_is_a_grid_of_all_combinations(tmp_path):
    sets = sets_of(tmp_path, "grid.yaml", "steps: [1, 2]\nprompt: [a, 'b, c']\nlayers: [[1, 2]]")
    assert sets == [
        {"steps": steps, "prompt": prompt, "layers": [1, 2]}
        for steps in (1, 2)
        for prompt in ("a", "b, c")
    ]


def test_csv_is_a_set_in_each_line_and_an_empty_cell_the_default(tmp_path):
    text = 'steps,prompt,layers\n1,"red, or blue?","[1, 2]"\n\n,x,\n'
    assert sets_of(tmp_path, "sets.csv", text) == [
        {"steps": 1, "prompt": "red, or blue?", "layers": [1, 2]},
        {"prompt": "x"},
    ]


def test_json_lines_are_a_set_in_each_line(tmp_path):
    text = '{"steps": 1}\n{"prompt": "x", "layers": [1]}\n'
    assert sets_of(tmp_path, "sets.jsonl", text) == [{"steps": 1}, {"prompt": "x", "layers": [1]}]


def test_every_character_of_a_text_arrives(tmp_path):
    odd = "two\nlines,\x0c\u2028 and 'quotes'"
    quoted = '"' + odd + '"'
    assert sets_of(tmp_path, "sets.csv", f"steps,prompt\n1,{quoted}\n")[0]["prompt"] == odd
    line = json.dumps({"prompt": odd}, ensure_ascii=False)
    assert sets_of(tmp_path, "sets.jsonl", f"{line}\r\n\n{line}") == [{"prompt": odd}] * 2


def test_spreadsheets_mark_of_utf8_is_no_part_of_a_name(tmp_path):
    assert sets_of(tmp_path, "sets.csv", "\ufeffprompt\r\nä\r\n") == [{"prompt": "ä"}]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("grid.txt", "", "expected a file ending in .yaml"),
        ("grid.yaml", "steps: 3", "steps: expected a list of values, got 3"),
        ("grid.yaml", "steps: []", "steps: expected a list of values"),
        ("grid.yaml", "- steps", "expected a mapping"),
        ("sets.csv", "steps\n1\n\nmany\n", "csv, line 4: steps must be of type int, got 'many'"),
        ("sets.csv", "step\n1\n", "unknown parameter step: did you mean steps"),
        ("sets.csv", "steps\n1,2\n", "line 2: more cells"),
        ("sets.csv", 'steps\n"1\n', "not CSV"),
        ("sets.csv", "steps,ratio,steps\n1,2,3\n", "sets.csv, line 1: steps: named twice"),
        ("sets.jsonl", '{"steps": 1}\nsteps\n', "line 2: not JSON"),
        ("sets.jsonl", "[1]\n", "line 1: expected a JSON object"),
        ("sets.jsonl", "{}\n" + "[" * 100_000, "line 2: not JSON: .* too deep"),
        ("sets.jsonl", '{"steps": ' + "1" * 5000 + "}", "line 1: not JSON: Exceeds the limit"),
        ("grid.yaml", "steps: [1]\nratio: &a [*b]", "line 2: cannot be read as YAML: found undef"),
    ],
)
def test_file_that_is_not_what_it_seems_is_refused(tmp_path, name, text, complaint):
    with pytest.raises(Refused, match=complaint):
        sets_of(tmp_path, name, text)


@pytest.mark.parametrize("name", ["lost.yaml", "lost.csv", "lost.jsonl"])
def test_missing_file_is_refused(tmp_path, name):
    with pytest.raises(Refused, match="cannot be read"):
        read_sets(tmp_path / name, DECLARED)


@pytest.mark.parametrize(
    ("choice", "values"),
    [
        ("steps=1,2", [1, 2]),
        ("ratio=0.5, 1", [0.5, 1.0]),
        ('prompt="red, or blue?",b', ["red, or blue?", "b"]),
        ("prompt=a=b", ["a=b"]),
        ("prompt=", [""]),
        ("layers=[1, 2],[]", [[1, 2], []]),
    ],
)
def test_choices_have_the_declared_type(choice, values):
    [found] = read_choices(DECLARED, [choice]).values()
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("choices", "complaint"),
    [
        (["steps"], "name=a,b,c, got 'steps'"),
        (["steps=1", "steps=2"], "each name once"),
        (["steps=1,x"], "steps must be of type int, got 'x'"),
        (["step=1"], "unknown parameter step"),
        (["layers=[1"], "list"),
        (["prompt=a\nb"], "values with commas between, got 'a.nb'"),
    ],
)
def test_choice_that_cannot_be_meant_is_refused(choices, complaint):
    with pytest.raises(Refused, match=complaint):
        read_choices(DECLARED, choices)


@given(
    st.dictionaries(
        st.text(max_size=3), st.lists(st.integers(), min_size=1, max_size=4), max_size=4
    )
)
def test_combinations_are_all_and_each_once(grid):
    found = combinations(grid)
    expected = 1
    for values in grid.values():
        expected *= len(values)
    assert len(found) == expected
    assert all(one.keys() == grid.keys() for one in found)
    assert all(one[name] in grid[name] for one in found for name in grid)


def test_more_combinations_than_anybody_can_run_are_refused():
    grid = {name: [*range(100)] for name in "abcdefghij"}
    with pytest.raises(Refused, match=r"at most 1,000,000 combinations, got 100,000,000,000,000"):
        combinations(grid)


def test_file_and_choices_are_crossed_and_must_not_meet():
    sets = [{"steps": 1}, {"steps": 2}]
    assert crossed(sets, {}) == sets
    assert len(crossed(sets, {"prompt": ["a", "b", "c"]})) == 6
    with pytest.raises(Refused, match="steps: chosen both"):
        crossed(sets, {"steps": [1]})
