"""The cards of corrected teachers and distilled students say what their runs did, in a form that the Hub reads."""

from huggingface_hub import ModelCard

from tinywave.training.arguments import CorrectionArguments, DistillationArguments
from tinywave.training.layer_map import LayerMap
from tinywave.training.model_card import read_licence, write_correction_card, write_model_card


def write_card(tmp_path, teacher_card=None):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    teacher.mkdir()
    student.mkdir()
    if teacher_card:
        (teacher / "README.md").write_text(teacher_card)
    path = write_model_card(
        student,
        teacher=teacher,
        parameters=(1_721_664, 5_263_680),
        layer_map=LayerMap.every_third_ending_last(32, 10),
        args=DistillationArguments(output_dir=str(student), use_cpu=True, hidden_weight=0.0, temperature=4.0, seed=3),
        num_examples=1234,
        num_steps=420,
    )
    return ModelCard.load(path)


def test_the_card_names_the_layer_map_the_losses_and_the_sizes(tmp_path):
    card = write_card(tmp_path)
    assert "Block l of the student answers to block 3l + 4 of the teacher, l = 0 ... 9." in card.text
    assert "1,721,664 parameters, 32.7 % of the 5,263,680" in card.text
    assert "- logits: forward_kl at temperature 4, weight 1" in card.text
    assert "hidden states" not in card.text, "a term of weight 0 took no part"
    assert "1,234 documents\nin 420 steps" in card.text and "seed 3" in card.text
    assert card.data.library_name == "transformers" and "tinywave" in card.data.tags


def test_the_licence_of_the_teacher_is_passed_on(tmp_path):
    front = "---\nlicense: other\nlicense_name: fair-noncommercial-research\n---\n# Teacher\n"
    card = write_card(tmp_path, front)
    assert card.data.license == "other"
    assert card.data.to_dict()["license_name"] == "fair-noncommercial-research"


def test_the_licence_outlives_a_correction(tmp_path):
    source, corrected = tmp_path / "source", tmp_path / "corrected"
    source.mkdir()
    corrected.mkdir()
    front = "---\nlicense: other\nlicense_name: fair-noncommercial-research\n---\n# Source\n"
    (source / "README.md").write_text(front)
    args = CorrectionArguments(output_dir=str(corrected), use_cpu=True, lora_rank=8)
    card = ModelCard.load(write_correction_card(corrected, teacher=source, args=args, num_examples=77))
    assert "LoRA of rank 8" in card.text and "77 documents" in card.text
    expected = {"license": "other", "license_name": "fair-noncommercial-research"}
    assert read_licence(corrected) == read_licence(source) == expected


def test_without_a_card_no_licence_is_claimed(tmp_path):
    assert write_card(tmp_path).data.license is None


def test_text_of_files_cannot_add_markup_to_a_card(tmp_path):
    teacher = tmp_path / "<img src=x onerror=alert(1)> [a](javascript:b)"
    teacher.mkdir()
    (teacher / "README.md").write_text("---\nlicense: other\nlicense_name: 'x\\n---\\nevil: true'\n---\n")
    arguments = CorrectionArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    (tmp_path / "out").mkdir()
    card = write_correction_card(tmp_path / "out", teacher=teacher, args=arguments, num_examples=1)
    text = card.read_text()
    assert "<img" not in text and "[a](javascript" not in text
    assert ModelCard(text).data.to_dict().get("evil") is None
