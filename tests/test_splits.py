"""Who is in training, validation and test."""

from pathlib import Path

import pytest

from hcm_helpers.acdc import GROUPS, Patient
from hcm_helpers.slices import (
    assign_splits,
)


def make_patients(**counts):
    """Patients without files: NOR=20 in training, NOR_testing=10 in the official test set."""
    patients = []
    for key, count in counts.items():
        group, _, split = key.partition("_")
        for _ in range(count):
            number = len(patients) + 1
            patients.append(Patient(f"patient{number:03d}", Path(), group, 1, 7, 30, 170.0, 70.0, split or "training"))
    return patients


@pytest.mark.parametrize(
    ("count", "expected"),
    [(20, (14, 2, 4)), (19, (13, 2, 4)), (10, (7, 1, 2)), (3, (1, 1, 1)), (2, (2, 0, 0)), (1, (1, 0, 0))],
)
def test_every_group_is_divided_by_itself(count, expected):
    patients = make_patients(**dict.fromkeys(GROUPS, count))
    split = assign_splits(patients, seed=0)
    assert len(split) == 5 * count
    for group in GROUPS:
        names = [split[patient.name] for patient in patients if patient.group == group]
        assert tuple(names.count(part) for part in ("train", "validation", "test")) == expected


def test_official_test_set_is_the_test_set():
    patients = make_patients(HCM=20, NOR=19, HCM_testing=10, NOR_testing=10)
    split = assign_splits(patients, seed=0)
    assert {p.name for p in patients if split[p.name] == "test"} == {p.name for p in patients[39:]}
    assert sum(split[p.name] == "validation" for p in patients[:20]) == 3  # 15 % of 20
    assert sum(split[p.name] == "validation" for p in patients[20:39]) == 3  # and of 19, rounded


def test_the_testing_folder_alone_is_divided_too():
    split = assign_splits(make_patients(HCM_testing=10), seed=0)
    assert set(split.values()) == {"train", "validation", "test"}


def test_the_split_depends_on_the_seed_alone():
    patients = make_patients(**dict.fromkeys(GROUPS, 20))
    assert assign_splits(patients, 3) == assign_splits(patients[::-1], 3)
    assert assign_splits(patients, 3) != assign_splits(patients, 4)


def test_a_smaller_share_of_training_patients_is_part_of_a_larger_one():
    patients = make_patients(NOR=10, HCM=10, DCM=3)
    whole, half, few = (assign_splits(patients, 0, fraction) for fraction in (1.0, 0.5, 0.01))
    in_training = [{name for name, part in split.items() if part == "train"} for split in (whole, half, few)]
    assert [len(names) for names in in_training] == [7 + 7 + 1, 4 + 4 + 1, 1 + 1 + 1]  # of 7, 7 and 1
    assert in_training[2] < in_training[1] < in_training[0]
    for split in (half, few):  # nobody else moves
        assert {n: p for n, p in split.items() if p != "train"} == {n: p for n, p in whole.items() if p != "train"}
