"""timm: `_info.json`, which timm's `wds/` reader looks for in the root."""

from lmk_data.dataset.reader import ShardedDataset
from lmk_data.export.rows import Write, json_file


def timm(dataset: ShardedDataset) -> dict[str, Write]:
    """Return `_info.json`, which timm looks for in the root."""
    splits = {
        split: {
            "name": split,
            "filenames": [shard["name"] for shard in dataset.shards(split)],
            "shard_lengths": [shard["num_samples"] for shard in dataset.shards(split)],
            "num_samples": dataset.num_samples(split),
        }
        for split in dataset.splits
    }
    return {"_info.json": json_file({"splits": splits})}
