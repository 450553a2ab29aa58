"""Check whether a dataset is what its manifest says."""

from lmk_data.verify.dataset import Verification, verify

__all__ = ["Verification", "verify"]
