"""What webdataset reads of a shard is compared sample by sample."""

from pathlib import Path

from lmk_data.dataset import ShardedDataset
from lmk_data.verify.shard import ShardToCheck, _check_as_others_read


def test_the_first_sample_that_webdataset_reads_otherwise_is_named(dataset_path: Path) -> None:
    with ShardedDataset.open(dataset_path) as dataset:
        split = dataset.splits[0]
        shard = dataset.shards(split)[0]
        rows = [row for row in dataset.index_table(split).to_pylist() if row["shard"] == shard["name"]]
        task = ShardToCheck(dataset.folder, shard["name"], shard["num_bytes"], "", b"", 32, True, 0, False)
        assert len(rows) > 2
        assert list(_check_as_others_read(task, rows)) == []
        for wrong, first in ((rows[:-1], len(rows) - 1), ([*rows, rows[0]], len(rows)), ([rows[1], *rows[1:]], 0)):
            (problem,) = _check_as_others_read(task, wrong)
            assert f"from sample {first} of {len(wrong)} on" in problem.what
