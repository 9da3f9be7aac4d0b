"""Which shard a study belongs to."""

import pytest

from aeflow_monai.archive import Shard


def test_every_study_belongs_to_one_shard() -> None:
    keys = [f"sub-{number:05d}/t1.nii.gz" for number in range(2000)]
    shards = [Shard(number, 16) for number in range(1, 17)]
    held = [[shard.number for shard in shards if shard.holds(key)] for key in keys]
    assert all(len(numbers) == 1 for numbers in held)
    assert {numbers[0] for numbers in held} == set(range(1, 17))


def test_a_shard_stays_where_it_is_on_every_machine() -> None:
    # a change of the hash would score finished archives again
    assert [key for key in map(str, range(30)) if Shard(3, 16).holds(key)] == ["7", "27"]


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "1/0", "-1/4", "1/4/2", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--shard: expected K/N, such as 3/16, with K from 1 to N; got "):
        Shard.parse(text)


def test_folders_sort_as_their_numbers() -> None:
    assert [Shard(number, 16).folder for number in (3, 16)] == ["03-of-16", "16-of-16"]
