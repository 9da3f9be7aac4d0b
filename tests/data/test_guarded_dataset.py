import torch
from monai.transforms import Compose, Lambdad

from aeflow_monai.data.guarded_dataset import GuardedDataset, recorded_failure
from aeflow_monai.errors import Failure

DATA = [{"case": name, "image": f"{name}.nii.gz"} for name in "abcde"]


def loaded(path: str) -> torch.Tensor:
    """Stands for a reader; b is broken."""
    if path.startswith("b"):
        raise EOFError
    return torch.ones(1, 4)


def test_a_case_that_cannot_be_read_is_an_item_that_says_why() -> None:
    dataset = GuardedDataset(DATA, Compose([Lambdad("image", loaded)]))
    assert len(dataset) == 5
    assert dataset[0]["image"].shape == (1, 4)
    assert dataset[1] == {"case": "b", "file": "b.nii.gz", "stage": "read", "failure": "EOFError"}
    assert recorded_failure(dataset[0]) is None
    batch = {name: [value] for name, value in dataset[1].items()}
    assert recorded_failure(batch) == Failure("b", "b.nii.gz", "read", "EOFError")
