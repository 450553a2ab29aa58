"""Tars are written as webdataset writes them."""

import hashlib
import io
import tarfile

import webdataset

from lmk_data.dataset.tar import TarFile


def test_tars_are_byte_for_byte_those_of_webdataset() -> None:
    samples = [{"__key__": f"k{i}", "cls": b"7", "jpg": bytes(range(i % 256)) * i, "json": b"{}"} for i in range(40)]
    ours, theirs = io.BytesIO(), io.BytesIO()
    tar = TarFile(ours)
    for sample in samples:
        for extension in ("cls", "jpg", "json"):
            tar.add(f"{sample['__key__']}.{extension}", sample[extension])  # type: ignore[arg-type]
    digest = tar.close()
    with webdataset.TarWriter(theirs, user="lmk", group="lmk", mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write(sample)
    assert ours.getvalue() == theirs.getvalue()
    assert digest == hashlib.sha256(theirs.getvalue()).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(ours.getvalue())) as read:
        assert len(read.getmembers()) == 120
