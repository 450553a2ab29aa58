"""wids: one descriptor for each split, for webdataset's `ShardListDataset`."""

from lmk_data.dataset.reader import ShardedDataset
from lmk_data.export.rows import Write, json_file


def wids(dataset: ShardedDataset) -> dict[str, Write]:
    """Return one descriptor for each split."""
    title = dataset.manifest["title"] or "shards"
    return {
        f"{split}.json": json_file(
            {
                "__kind__": "wids-shard-index-v1",
                "wids_version": 1,
                "name": f"{title} {split}",
                "shardlist": [
                    {"url": shard["name"], "nsamples": shard["num_samples"], "filesize": shard["num_bytes"]}
                    for shard in dataset.shards(split)
                ],
            }
        )
        for split in dataset.splits
    }
