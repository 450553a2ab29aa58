"""The table of limits in docs/sharding.md has the numbers of the code, and no row that the code does not have."""

import re
from pathlib import Path

from lmk_data import formats
from lmk_data.dataset import evaluation, manifest
from lmk_data.dataset import tables as dataset_tables
from lmk_data.decoding import exif, jpeg, picture, png, refusal
from lmk_data.options import Recipe
from lmk_data.sources import archives, links, rows, tables, tar_headers
from lmk_data.system import files, parquet, remote, storage, web
from lmk_data.views import lists, marks

SHARDING = Path(__file__).resolve().parents[1] / "docs/sharding.md"


def size(num_bytes: int) -> str:
    """Return a power of two in the unit that leaves the smallest whole number."""
    units = ["bytes", "KiB", "MiB", "GiB"]
    while num_bytes % 1024 == 0 and len(units) > 1:
        num_bytes, units = num_bytes // 1024, units[1:]
    return f"{num_bytes:,} {units[0]}"


LIMITS = {
    "a picture file": size(formats.MAX_IMAGE_BYTES),
    "a picture file in a zip, packed and unpacked": size(formats.MAX_ZIPPED_IMAGE_BYTES),
    "memory for a picture": f"{refusal.MAX_DECODED_BYTES // 10**6} MB",
    "pixels of a picture": f"{Recipe().max_pixels:,}",
    "scans of a JPEG": f"{jpeg.MAX_SCANS}",
    "chunks of a PNG": f"{png.MAX_CHUNKS:,}",
    "pixels of a run-length encoded BMP": f"{picture.MAX_RLE_PIXELS:,}",
    "EXIF or XMP of a picture that is searched": size(exif.MAX_METADATA_BYTES),
    "`dataset.json`": size(manifest.MAX_BYTES),
    "rows of `classes.parquet`, `dropped_classes.parquet` and `rejects.parquet`": f"{dataset_tables.MAX_ROWS:,}",
    "these tables in memory": size(dataset_tables.MAX_BYTES),
    "an index in memory, for each row": size(dataset_tables.BYTES_PER_ROW),
    "the footer and the columns of a Parquet file": f"{size(parquet.MAX_FOOTER_BYTES)}, {parquet.MAX_COLUMNS:,}",
    "a table of an evaluation": f"{evaluation.LIMITS.max_rows:,} rows, {size(evaluation.LIMITS.max_bytes)} in memory",
    "rows of a label table": f"{rows.MAX_ROWS:,}, different ones {rows.MAX_DIFFERENT_ROWS:,}",
    "text of its two columns, in different rows": size(rows.MAX_TEXT_BYTES),
    "a line of a CSV": size(tables.MAX_LINE_BYTES),
    "members of an archive": f"{archives.MAX_MEMBERS:,}",
    "the name of a member": f"{archives.MAX_NAME_LENGTH:,} characters, {archives.MAX_FOLDERS} folders",
    "an extension header of a tar": size(tar_headers.MAX_HEADER_BYTES),
    "extension headers before a member of a tar": f"{tar_headers.MAX_HEADERS}",
    "zeros after the end of a tar": size(archives.MAX_ZERO_BYTES),
    "the directory of a zip": size(archives.MAX_DIRECTORY_BYTES),
    "files that the links of an archive add": f"{links.MAX_FILES:,}",
    "a label table or table of categories, also unpacked": size(tables.MAX_BYTES),
    "any other file that is read in one piece": size(files.MAX_FILE_BYTES),
    "one listing of a web server": size(web.MAX_LISTING_BYTES),
    "a file that a web server sends whole where a part is asked for": size(web.MAX_WHOLE_BYTES),
    "a list of classes": size(lists.MAX_CLASSES_BYTES),
    "a list of keys": size(lists.MAX_KEYS_BYTES),
    "a file of marks": f"{size(marks.MAX_BYTES)}, {marks.MAX_MARKS:,} marks",
    "folders below a URL of a web server": f"{remote.MAX_FOLDERS:,}, {remote.MAX_DEPTH} deep",
    "files below a URL of a web server": f"{remote.MAX_FILES:,}",
    "silence of a web server": f"{web.SILENT_SECONDS} s",
    "one answer of a web server": f"{web.MAX_ANSWER_SECONDS:,} s, at least {size(web.LEAST_BYTES_PER_SECOND)} a second",
    "time after which a failed request is not repeated": f"{remote.PATIENCE_SECONDS} s",
    "folders that links lead to": f"{storage.MAX_LINKED_FOLDERS:,}",
}


def test_the_docs_state_the_limits_of_the_code() -> None:
    section = re.split(r"^#+ ", SHARDING.read_text().partition("\n## Limits\n")[2], flags=re.MULTILINE)[0]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"]
    assert {row[0]: row[1] for row in rows[2:]} == LIMITS
