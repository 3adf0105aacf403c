import pytest
import yaml

from tinywave.training.layer_map import LayerMap


def test_every_third_ending_last_is_the_papers_map():
    layer_map = LayerMap.every_third_ending_last(32, 10)
    assert layer_map.teacher_blocks == tuple(3 * block + 4 for block in range(10))
    assert layer_map.student_blocks == tuple(range(10))


def test_every_third_ending_last_of_the_nano_teacher():
    assert LayerMap.every_third_ending_last(11, 3).teacher_blocks == (4, 7, 10)


@pytest.mark.parametrize(
    ("teacher_layers", "student_layers", "blocks"),
    [(12, 4, (0, 4, 7, 11)), (32, 10, (0, 3, 7, 10, 14, 17, 21, 24, 28, 31)), (5, 5, (0, 1, 2, 3, 4)), (5, 1, (4,))],
)
def test_uniform_spans_first_to_last(teacher_layers, student_layers, blocks):
    assert LayerMap.uniform(teacher_layers, student_layers).teacher_blocks == blocks


def test_last_takes_the_top_blocks():
    assert LayerMap.last(11, 3).pairs == ((8, 0), (9, 1), (10, 2))


def test_yaml_round_trip():
    layer_map = LayerMap.from_pairs([[7, 1], [2, 0]])
    assert layer_map.pairs == ((2, 0), (7, 1))
    assert LayerMap.from_pairs(yaml.safe_load(yaml.safe_dump(layer_map.to_list()))) == layer_map


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "found none"),
        ([(1, 0), (2, 0)], r"Student blocks \[0\] appear more than once"),
        ([(-1, 0)], "counted from 0"),
        ([(1.5, 0)], "pair of integers"),
        ([(True, 0)], "pair of integers"),
        ([(1, 0, 2)], "pair of integers"),
    ],
)
def test_impossible_pairs_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        LayerMap.from_pairs(pairs)


@pytest.mark.parametrize("student_layers", [0, 5])
def test_every_third_refuses_depths_it_cannot_reach(student_layers):
    with pytest.raises(ValueError, match="1 to 4 layers; found"):
        LayerMap.every_third_ending_last(11, student_layers)


@pytest.mark.parametrize("make", [LayerMap.uniform, LayerMap.last])
def test_a_student_deeper_than_its_teacher_is_refused(make):
    with pytest.raises(ValueError, match="cannot be taken from a teacher of 4"):
        make(4, 5)


def test_check_depths_names_the_side_that_is_too_shallow():
    layer_map = LayerMap.from_pairs([(4, 1)])
    layer_map.check_depths(5, 2)
    with pytest.raises(ValueError, match="teacher block 4, but the teacher has 4 blocks"):
        layer_map.check_depths(4, 2)
    with pytest.raises(ValueError, match="student block 1, but the student has 1 blocks"):
        layer_map.check_depths(5, 1)


def test_some_blocks_of_a_map():
    layer_map = LayerMap.every_third_ending_last(11, 3)
    assert layer_map.restricted_to(None) is layer_map
    assert layer_map.restricted_to([2, 0]).pairs == ((4, 0), (10, 2))
    with pytest.raises(ValueError, match=r"Blocks \[3\] are to be aligned, but .* blocks \[0, 1, 2\] only"):
        layer_map.restricted_to([1, 3])
    with pytest.raises(ValueError, match="found none"):
        layer_map.restricted_to([])


@pytest.mark.parametrize(
    ("layer_map", "expected"),
    [
        (LayerMap.every_third_ending_last(11, 3), "student answers to block 3l + 4 of the teacher, l = 0 ... 2."),
        (LayerMap.last(5, 5), "student answers to block l of the teacher, l = 0 ... 4."),
        (LayerMap.last(5, 1), "student answers to block l + 4 of the teacher, l = 0."),
        (LayerMap.from_pairs([(2, 1), (5, 2)]), "Blocks 1, 2 of the student answer to blocks 2, 5 of the teacher."),
        (LayerMap.from_pairs([(5, 0), (2, 1)]), "Blocks 0, 1 of the student answer to blocks 5, 2 of the teacher."),
    ],
)
def test_a_map_describes_itself(layer_map, expected):
    assert layer_map.describe().endswith(expected)
