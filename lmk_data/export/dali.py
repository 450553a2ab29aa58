"""DALI: an `.idx` beside each tar, in the format of `wds2idx`, for `fn.readers.webdataset`."""

from lmk_data.dataset.format import write_file
from lmk_data.dataset.reader import ShardedDataset
from lmk_data.dataset.tar import sample_members
from lmk_data.export.rows import IndexByShard, Write, all_shards
from lmk_data.system.storage import LocalFolder


def dali(dataset: ShardedDataset) -> dict[str, Write]:
    """Return an `.idx` for each tar, in the format of `wds2idx` (v1.2)."""
    index = IndexByShard(dataset)

    def write(folder: LocalFolder, name: str) -> None:
        shard = f"{name.removesuffix('.idx')}.tar"
        lines = []
        for row in index.rows(shard):
            members = sample_members(row)
            lines.append(
                " ".join(f"{m.extension} {m.offset} {m.num_bytes} {row['key']}.{m.extension}" for m in members)
            )
        write_file(folder, name, "\n".join([f"v1.2 {len(lines)}", *lines, ""]).encode())

    return {f"{shard['name'].removesuffix('.tar')}.idx": write for shard in all_shards(dataset)}
