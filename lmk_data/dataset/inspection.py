"""The files that an inspection of a dataset leaves: their names and columns."""

import pyarrow as pa

INSPECTION = "quality.json"  # what was inspected, by which features, with which thresholds
SAMPLES = "quality.parquet"
CLASSES = "classes-quality.parquet"
PAGE = "index.html"
FEATURES = "features"  # features/<key>/<split>.npy, float16 [N, D], rows in the order of the split's index


def samples_schema(landmark_id: pa.DataType) -> pa.Schema:
    """Return the schema of quality.parquet: one row per inspected sample, by split in the order of its index.

    Similarities are cosines of features. `own_similarity` is to the mean of the sample's class without the sample
    itself, null in a class of one sample. `other_*` is the class that fits best among the others. Scores are from
    0 to 1, the most suspicious highest; `wrong_label_score` estimates the probability that the label is wrong.
    """
    return pa.schema(
        [
            ("key", pa.string()),
            ("split", pa.string()),
            ("label", pa.int32()),
            ("landmark_id", landmark_id),
            ("own_similarity", pa.float32()),
            ("other_label", pa.int32()),
            ("other_landmark_id", landmark_id),
            ("other_similarity", pa.float32()),
            ("wrong_label_score", pa.float32()),
            ("wrong_label", pa.bool_()),
            ("outlier_score", pa.float32()),
            ("outlier", pa.bool_()),
        ]
    )


def class_quality_schema(landmark_id: pa.DataType) -> pa.Schema:
    """Return the schema of classes-quality.parquet: one row per class of the dataset, in order of labels.

    `cohesion` is the mean of `own_similarity`; `purity` the share of samples that no other class fits better.
    Scores are from 0 to 1 with the threshold at 0.5, null where nothing can be said. `several_score` says how far the
    parts of the class are apart; `clusters` is how many parts there are, 1 unless `several`. `twin_*` is the nearest
    class, null where there is no other: `twin_similarity` is the cosine between the means of both, `twin_duplicates`
    counts the groups of near duplicates that both share, `twin_score` says how near it is, and `twin` whether both may
    be the same thing.
    """
    return pa.schema(
        [
            ("label", pa.int32()),
            ("landmark_id", landmark_id),
            ("num_samples", pa.int32()),
            ("cohesion", pa.float32()),
            ("purity", pa.float32()),
            ("wrong_labels", pa.int32()),
            ("outliers", pa.int32()),
            ("clusters", pa.int32()),
            ("several_score", pa.float32()),
            ("several", pa.bool_()),
            ("twin_label", pa.int32()),
            ("twin_landmark_id", landmark_id),
            ("twin_similarity", pa.float32()),
            ("twin_duplicates", pa.int32()),
            ("twin_score", pa.float32()),
            ("twin", pa.bool_()),
        ]
    )
