"""The classes that a run was trained on, and whether a dataset has them."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmk_data.dataset import ShardedDataset
from lmk_data.errors import UserError


@dataclass(frozen=True)
class Classes:
    """The K classes of a model: landmark id, name (None without one) and training images (int64 [K]) of each label.

    `content_sha256` is the hash of their dataset.
    """

    ids: list[int | str]
    names: list[str | None]
    train_counts: NDArray[np.int64]
    content_sha256: str

    @classmethod
    def of_dataset(cls, dataset: ShardedDataset) -> "Classes":
        """Return the classes of a dataset, in order of their labels."""
        table = dataset.classes
        names = [name if isinstance(name, str) else None for name in table["name"]]
        counts = table["train"].to_numpy(np.int64)
        return cls(table["landmark_id"].tolist(), names, counts, dataset.manifest["content_sha256"])

    @classmethod
    def of_checkpoint(cls, state: dict[str, Any]) -> "Classes":
        """Return the classes that a checkpoint was trained on."""
        counts = np.array(state["train_counts"], dtype=np.int64)
        return cls(state["classes"], state["names"], counts, state["content_sha256"])

    def labels_of(self, dataset: ShardedDataset) -> NDArray[np.int64]:
        """Return the label here of each label of a dataset, int64 [its K]; -1 for a landmark that is not one of these.

        Ids are compared as text, since a single id that is not a number turns all ids of its dataset into text.
        """
        labels = {str(landmark_id): label for label, landmark_id in enumerate(self.ids)}
        ids = dataset.classes["landmark_id"]
        return np.array([labels.get(str(landmark_id), -1) for landmark_id in ids], dtype=np.int64)

    def num_known(self, dataset: ShardedDataset, split: str) -> int:
        """Return how many samples of a dataset's split have a landmark that is one of these."""
        return int(dataset.classes.loc[self.labels_of(dataset) >= 0, split].sum())


def dataset_state(dataset: ShardedDataset) -> dict[str, Any]:
    """Return what a checkpoint keeps of its dataset: its hash, its classes and how its pictures were resized."""
    classes = Classes.of_dataset(dataset)
    return {
        "content_sha256": dataset.manifest["content_sha256"],
        "classes": classes.ids,
        "names": classes.names,
        "train_counts": classes.train_counts.tolist(),
        "recipe": asdict(dataset.recipe),
    }


def check_classes(dataset: ShardedDataset, classes: list[int | str]) -> None:
    """Raise UserError unless a dataset has the classes that a checkpoint was trained on, under the same labels."""
    if Classes.of_dataset(dataset).ids != classes:
        raise UserError(
            f"{dataset.location}: its {dataset.num_classes} classes are not the {len(classes)} of the run; "
            "give the dataset of the run with --shards"
        )
