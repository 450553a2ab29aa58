"""Text that people type (labels, ids, names of columns and classes), in the one form in which it is compared."""

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_INVISIBLE = "\ufeff\u200b\u2060"  # byte order mark, zero-width space, word joiner: pasted along from web pages
_SHOWN_GROUPS = 3
_SHOWN_CHARACTERS = 120


def normal_form(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return strings in Unicode's form NFC without white space around them; missing values stay missing."""
    trimmed = pc.utf8_trim_whitespace(pc.utf8_normalize(values, form="NFC"))
    return pc.utf8_trim_whitespace(pc.utf8_trim(trimmed, characters=_INVISIBLE))


def chunked(values: "pd.Series[str]") -> pa.ChunkedArray:
    """Return a Series of strings as Arrow's strings, whatever pandas keeps them in, even if it has none."""
    if isinstance(values.dtype, pd.StringDtype):  # its buffers are taken, no string is made
        texts = pa.array(values.array)
    else:
        texts = pa.array(values.to_numpy(dtype=object), pa.string())
    chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
    return pa.chunked_array([chunk.cast(pa.string()) for chunk in chunks], pa.string())


def normal_series(values: "pd.Series[str]") -> "pd.Series[str]":
    """Return `normal_form` of a Series of strings, with its index; the same Series if nothing changes."""
    texts = chunked(values)
    normal = normal_form(texts)
    if normal.equals(texts):
        return values
    return pd.Series(normal.to_pandas().to_numpy(dtype=object), index=values.index, dtype=object)


def normal_text(text: str) -> str:
    """Return `normal_form` of one string."""
    return str(normal_form(pa.chunked_array([[text]], pa.string()))[0].as_py())


def joined_spellings(values: pa.ChunkedArray, normal: pa.ChunkedArray) -> str:
    """Return the spellings that became one text, as `'cat' = 'cat '`, or nothing if no two did."""
    if values.equals(normal):
        return ""
    spellings = pa.table({"typed": values, "normal": normal}).group_by(["normal", "typed"]).aggregate([]).to_pandas()
    joined = spellings[spellings["normal"].duplicated(keep=False)]
    groups = [" = ".join(sorted(map(shown, group))) for _, group in joined.groupby("normal")["typed"]]
    more = f" and {len(groups) - _SHOWN_GROUPS:,} more" if len(groups) > _SHOWN_GROUPS else ""
    return ", ".join(groups[:_SHOWN_GROUPS]) + more


def shown(text: str) -> str:
    """Return text of a stranger in one short line of ASCII."""
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
