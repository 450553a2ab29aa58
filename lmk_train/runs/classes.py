"""The classes that a run was trained on, and whether a dataset has them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError


@dataclass(frozen=True)
class Classes:
    """What a model tells apart: landmark id and name (None without one) of each label, training images int64 [K].

    `content_sha256` is the hash of the dataset that they are the classes of.
    """

    ids: list[int | str]
    names: list[str | None]
    train_counts: NDArray[np.int64]
    content_sha256: str

    @classmethod
    def of_dataset(cls, dataset: ShardedDataset) -> "Classes":
        """The classes of a dataset, in order of their labels."""
        table = dataset.classes
        names = [name if isinstance(name, str) else None for name in table["name"]]
        counts = table["train"].to_numpy(np.int64)
        return cls(table["landmark_id"].tolist(), names, counts, dataset.manifest["content_sha256"])

    @classmethod
    def of_checkpoint(cls, state: dict[str, Any]) -> "Classes":
        """The classes that a checkpoint was trained on."""
        counts = np.array(state["train_counts"], dtype=np.int64)
        return cls(state["classes"], state["names"], counts, state["content_sha256"])

    def labels_of(self, dataset: ShardedDataset) -> NDArray[np.int64]:
        """The label here of each label of a dataset, int64 [its K]; -1 for a landmark that is none of these.

        Ids are compared as text: one that is no number makes those of its whole dataset text.
        """
        places = {str(landmark_id): label for label, landmark_id in enumerate(self.ids)}
        ids = dataset.classes["landmark_id"]
        return np.array([places.get(str(landmark_id), -1) for landmark_id in ids], dtype=np.int64)

    def num_known(self, dataset: ShardedDataset, split: str) -> int:
        """Samples of a dataset's split whose landmark is one of these."""
        return int(dataset.classes.loc[self.labels_of(dataset) >= 0, split].sum())


def dataset_state(dataset: ShardedDataset) -> dict[str, Any]:
    """What a checkpoint keeps of its dataset: its hash, its classes and how its pictures were resized."""
    classes = Classes.of_dataset(dataset)
    return {
        "content_sha256": dataset.manifest["content_sha256"],
        "classes": classes.ids,
        "names": classes.names,
        "train_counts": classes.train_counts.tolist(),
        "recipe": asdict(dataset.recipe),
    }


def check_classes(dataset: ShardedDataset, classes: list[int | str]) -> None:
    """Raise UserError unless the dataset has the classes that a checkpoint was trained on, under the same labels."""
    if Classes.of_dataset(dataset).ids != classes:
        raise UserError(
            f"{dataset.location}: its {dataset.num_classes} classes are not the {len(classes)} of the run; "
            "give the dataset of the run with --shards"
        )
