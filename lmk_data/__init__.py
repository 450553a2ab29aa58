"""lmk_data: turns a labelled pile of images into a dataset of WebDataset shards with Parquet indexes."""

__version__ = "0.2.0"
