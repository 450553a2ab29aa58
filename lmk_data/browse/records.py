"""What the browser asks for and what it shows, as plain values. Pages count from 0; landmark ids are text."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")
ClassSort = Literal[
    "label", "name", "size", "f1", "purity", "suspects", "outliers", "duplicates", "conflicts", "marked"
]
ClassFilter = Literal[
    "suspects",
    "outliers",
    "several",
    "twin",
    "duplicates",
    "conflicts",
    "marked",
    "many",
    "medium",
    "few",
    "no-val",
    "no-test",
]
Flag = Literal["suspect", "outlier", "duplicate", "conflict", "misclassified"]
MarkFilter = Literal["any", "none", "exclude", "relabel"]
PictureSort = Literal["index", "suspicion", "outlier", "random"]
QueueName = Literal["suspects", "outliers", "duplicates", "conflicts", "confusions", "rejects"]


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a list: its items, and how many the whole list has."""

    items: list[Item]
    total: int
    page: int
    page_size: int


@dataclass(frozen=True, slots=True)
class ClassName:
    """A class by its names. `label` is None for a class that the dataset does not have, but a run does."""

    label: int | None
    landmark_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Beside:
    """The class to show beside another one, why, and how many pictures say so.

    `why`: `confused` (a run predicts it most often where it is wrong), `twin` (an inspection found the same thing
    under both), `nearest` (an inspection found it to fit most of the pictures that fit another class better).
    """

    other: ClassName
    why: Literal["confused", "twin", "nearest"]
    num_pictures: int


@dataclass(frozen=True, slots=True)
class ClassRow:
    """A class: its counts, and what a run, an inspection and the marks say of it. None is not known.

    `name` is the landmark id if the class has no name. `f1` is of the evaluation that `Facts.f1_split` names.
    `duplicates` and `conflicts` count pictures that have a duplicate, and one of another class. `cover` is the key of
    its first picture. Only `Catalogue.class_row` fills in `beside`.
    """

    label: int
    landmark_id: str
    name: str
    num_samples: int
    train: int
    val: int
    test: int
    f1: float | None
    purity: float | None
    suspects: int | None
    outliers: int | None
    clusters: int | None
    several: bool
    twin: ClassName | None
    duplicates: int | None
    conflicts: int | None
    excluded: int
    relabelled: int
    cover: str | None
    beside: Beside | None = None


@dataclass(frozen=True, slots=True)
class ClassQuery:
    """Which classes, in which order: those that have all of `filters` and whose id or name contains `search`."""

    search: str = ""
    sort: ClassSort = "size"
    descending: bool = True
    filters: tuple[ClassFilter, ...] = ()
    page: int = 0
    page_size: int = 100


@dataclass(frozen=True, slots=True)
class PictureQuery:
    """Which pictures, in which order. At most one of `label` and `queue`; neither means all pictures.

    `group` is the id of a `GroupRow` of the queue `duplicates`, `conflicts` or `confusions`. The queues `suspects`
    and `outliers` begin with the highest score unless `sort` is given. `seed` is of the order at random.
    """

    label: int | None = None
    queue: QueueName | None = None
    group: str | None = None
    split: str | None = None
    flag: Flag | None = None
    mark: MarkFilter | None = None
    sort: PictureSort | None = None
    seed: int = 0
    page: int = 0
    page_size: int = 200


@dataclass(frozen=True, slots=True)
class Marked:
    """The mark of a picture: `exclude`, or `relabel` with the right class."""

    action: Literal["exclude", "relabel"]
    new_class: ClassName | None
    note: str


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class that a run predicts, and its probability."""

    predicted: ClassName
    probability: float


@dataclass(frozen=True, slots=True)
class PictureRow:
    """A picture of a page with the data of its badges; None is not known or does not apply.

    `width` and `height` are of the source in pixels. `duplicates` is the id of its group of duplicates, and `conflict`
    says whether that has several classes. `proposed` is the class that an inspection finds to fit better, given for
    suspects. `prediction` is the best one of the run, `correct` whether it is the label.
    """

    key: str
    label: int
    landmark_id: str
    class_name: str
    split: str
    width: int
    height: int
    duplicates: str | None
    conflict: bool
    suspect: bool
    wrong_label_score: float | None
    proposed: ClassName | None
    outlier: bool
    outlier_score: float | None
    prediction: Prediction | None
    correct: bool | None
    mark: Marked | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A picture near another one: `similarity` is the cosine of their features."""

    picture: PictureRow
    similarity: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A duplicate of a picture: the same source bytes (`exact`), or a picture that looks the same (`near`)."""

    picture: PictureRow
    kind: Literal["exact", "near"]


@dataclass(frozen=True, slots=True)
class PictureDetail:
    """Everything that is known of one picture.

    `side` is of the stored picture in pixels. `own_similarity` and `other_similarity` are cosines to the means of its
    class and of `other`, the class that fits best among the others. Neighbours have the most similar first;
    `other_neighbours` are of the proposed class: that of the inspection, else the one that the run predicts.
    """

    picture: PictureRow
    source: str
    source_sha256: str
    original_bytes: int
    stored_bytes: int
    side: int
    shard: str
    predictions: list[Prediction]
    own_similarity: float | None
    other: ClassName | None
    other_similarity: float | None
    own_neighbours: list[Neighbour]
    other_neighbours: list[Neighbour]
    duplicates: list[Duplicate]


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue to work through: `count` items, or None with the command that makes it in `absent`.

    `marked` counts the pictures of it that have a mark.

    `unit` is `pictures` (page through `Catalogue.pictures`), `groups` (`Catalogue.groups`) or `files`
    (`Catalogue.rejects`).
    """

    name: QueueName
    title: str
    unit: Literal["pictures", "groups", "files"]
    count: int | None
    marked: int = 0
    absent: str | None = None


@dataclass(frozen=True, slots=True)
class GroupQuery:
    """Which groups: those of the queue `duplicates`, `conflicts` or `confusions`, the largest first."""

    queue: QueueName
    page: int = 0
    page_size: int = 20


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A group of pictures to judge at once; `pictures` are the first of them.

    For duplicates `classes` are those of its pictures; for a confusion they are the label and the prediction.
    """

    group: str
    num_pictures: int
    classes: list[ClassName]
    pictures: list[PictureRow]


@dataclass(frozen=True, slots=True)
class RejectRow:
    """A planned picture that the build did not write, and why."""

    key: str
    source: str
    landmark_id: str
    class_name: str
    split: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class MarkCounts:
    """How many pictures of the dataset are marked; `elsewhere` counts marks of keys that it does not have."""

    excluded: int
    relabelled: int
    elsewhere: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What is open.

    `splits` are samples by split. `run` and `quality` are paths, None if they were not given; `predicted` and
    `inspected` say how many samples they cover. `duplicates` is the kind that is known: None yet, `exact`, or `near`
    after `Catalogue.find_near_duplicates`. `subset_line` is the command that makes a view of the marks.
    """

    title: str
    location: str
    is_view: bool
    side: int
    num_samples: int
    num_classes: int
    splits: dict[str, int]
    run: str | None
    predicted: int
    f1_split: str | None
    quality: str | None
    inspected: int
    features: bool
    duplicates: Literal["exact", "near"] | None
    marks: str
    marked: MarkCounts
    subset_line: str
