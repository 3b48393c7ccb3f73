"""BLiMP's paradigms, and what published models reach on them.

The accuracies are those that Warstadt et al. (2020, "BLiMP: The Benchmark of Linguistic Minimal Pairs for English")
keep in their repository: github.com/alexwarstadt/blimp, raw_results/summary/models_summary.jsonl. Per phenomenon and
overall they are means over paradigms of 1,000 pairs each. The baselines of the BabyLM challenge
(github.com/babylm-org/babylm-eval) are GPT-2s trained on its corpora of 10 and of 100 million words; its evaluation
takes the good sentence of two that score equally.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SYSTEMS = ("5-gram", "LSTM", "Transformer-XL", "GPT-2")
"""Whose accuracies the phenomena have, in this order."""
OVERALL = {
    "5-gram": 0.6124,
    "LSTM": 0.6981,
    "Transformer-XL": 0.6963,
    "GPT-2": 0.8302,
    "GPT-2, 10 M words (BabyLM)": 0.651,
    "GPT-2, 100 M words (BabyLM)": 0.745,
}
"""Accuracies over all 67 paradigms."""


@dataclass(frozen=True)
class Phenomenon:
    """A phenomenon of the paper's twelve."""

    paradigms: tuple[str, ...]
    """Their UIDs."""
    accuracies: tuple[float, ...]
    """Of each of `SYSTEMS`."""


def _phenomenon(paradigms: str, *accuracies: float) -> Phenomenon:
    return Phenomenon(tuple(paradigms.split()), accuracies)


PHENOMENA = {
    "anaphor_agreement": _phenomenon(
        "anaphor_gender_agreement anaphor_number_agreement",
        0.4790,
        0.9170,
        0.9410,
        0.9930,
    ),
    "argument_structure": _phenomenon(
        "animate_subject_passive animate_subject_trans causative drop_argument inchoative intransitive "
        "passive_1 passive_2 transitive",
        0.7189,
        0.7317,
        0.7216,
        0.8178,
    ),
    "binding": _phenomenon(
        "principle_A_c_command principle_A_case_1 principle_A_case_2 principle_A_domain_1 "
        "principle_A_domain_2 principle_A_domain_3 principle_A_reconstruction",
        0.6441,
        0.7347,
        0.7469,
        0.8094,
    ),
    "control_raising": _phenomenon(
        "existential_there_object_raising existential_there_subject_raising expletive_it_object_raising "
        "tough_vs_raising_1 tough_vs_raising_2",
        0.6848,
        0.6700,
        0.7148,
        0.8192,
    ),
    "determiner_noun_agreement": _phenomenon(
        "determiner_noun_agreement_1 determiner_noun_agreement_2 determiner_noun_agreement_irregular_1 "
        "determiner_noun_agreement_irregular_2 determiner_noun_agreement_with_adj_2 "
        "determiner_noun_agreement_with_adj_irregular_1 determiner_noun_agreement_with_adj_irregular_2 "
        "determiner_noun_agreement_with_adjective_1",
        0.7005,
        0.8540,
        0.8301,
        0.9582,
    ),
    "ellipsis": _phenomenon(
        "ellipsis_n_bar_1 ellipsis_n_bar_2",
        0.3690,
        0.6760,
        0.7715,
        0.8935,
    ),
    "filler_gap_dependency": _phenomenon(
        "wh_questions_object_gap wh_questions_subject_gap wh_questions_subject_gap_long_distance "
        "wh_vs_that_no_gap wh_vs_that_no_gap_long_distance wh_vs_that_with_gap "
        "wh_vs_that_with_gap_long_distance",
        0.6020,
        0.7389,
        0.6660,
        0.8127,
    ),
    "irregular_forms": _phenomenon(
        "irregular_past_participle_adjectives irregular_past_participle_verbs",
        0.7950,
        0.8905,
        0.7815,
        0.9190,
    ),
    "island_effects": _phenomenon(
        "adjunct_island complex_NP_island coordinate_structure_constraint_complex_left_branch "
        "coordinate_structure_constraint_object_extraction left_branch_island_echo_question "
        "left_branch_island_simple_question sentential_subject_island wh_island",
        0.5724,
        0.4657,
        0.4834,
        0.7272,
    ),
    "npi_licensing": _phenomenon(
        "matrix_question_npi_licensor_present npi_present_1 npi_present_2 only_npi_licensor_present "
        "only_npi_scope sentential_negation_npi_licensor_present sentential_negation_npi_scope",
        0.4553,
        0.5166,
        0.5523,
        0.7683,
    ),
    "quantifiers": _phenomenon(
        "existential_there_quantifiers_1 existential_there_quantifiers_2 superlative_quantifiers_1 "
        "superlative_quantifiers_2",
        0.5350,
        0.6448,
        0.6930,
        0.7903,
    ),
    "subject_verb_agreement": _phenomenon(
        "distractor_agreement_relational_noun distractor_agreement_relative_clause "
        "irregular_plural_subject_verb_agreement_1 irregular_plural_subject_verb_agreement_2 "
        "regular_plural_subject_verb_agreement_1 regular_plural_subject_verb_agreement_2",
        0.6030,
        0.8007,
        0.7595,
        0.8635,
    ),
}
"""By the name that the data give it (`linguistics_term`); there, two of argument structure's are `s-selection`."""

PHENOMENON_OF = {uid: name for name, phenomenon in PHENOMENA.items() for uid in phenomenon.paradigms}
"""By UID."""


def published_accuracies(paradigms: Sequence[str]) -> list[tuple[str, str | None, float]]:
    """What is comparable with accuracies on `paradigms`: system, phenomenon (None for all of BLiMP), accuracy."""
    given = set(paradigms)
    found: list[tuple[str, str | None, float]] = []
    if given == set(PHENOMENON_OF):
        found += [(system, None, accuracy) for system, accuracy in OVERALL.items()]
    for name, phenomenon in PHENOMENA.items():
        if given >= set(phenomenon.paradigms):
            found += [(system, name, value) for system, value in zip(SYSTEMS, phenomenon.accuracies, strict=True)]
    return found
