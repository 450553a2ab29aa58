"""Notice that another rank ended, even while this one waits for a device: NCCL alone notices after minutes."""

import os
import sys
import threading
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from lmk_data.system.terminal import EXIT_ERROR

PEER_LOST = (
    "another process of the training ended or cannot be reached; its own last message says why. "
    "Start all of them again with --resume to resume from the last checkpoint"
)
# How long a rank has, after another ended, to end by itself: most often it fails for the same reason, or notices.
_GRACE_SECONDS = 3.0
_FOREVER = timedelta(days=3650)  # a watch waits as long as the other rank lives
_FINISHED, _LOST = 1, 2
_TAG = 0


class PeerWatch:
    """A watch of each rank over the first rank, and of the first rank over all others.

    The ranks hold connections of their own for this (gloo), which the kernel closes as soon as a process ends, however
    it ends. A rank that finishes says so first. When one ended without, the first rank tells all others, and a rank
    that does not end by itself soon is ended: its main thread may be in a call that never returns.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Start to watch. All ranks have to do so together."""
        self._rank = rank
        self._peers = [] if size == 1 else [0] if rank else list(range(1, size))
        self._leaving = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(peer,), daemon=True) for peer in self._peers]
        if self._peers:
            self._group: Any = distributed.new_group(backend="gloo", timeout=_FOREVER)
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Tell the other ranks that this one succeeded, and wait until all have; no watch is left then."""
        self._tell(_FINISHED)
        for thread in self._threads:
            thread.join()
        self._leaving.set()

    def leave(self, *, agreed: bool) -> None:
        """Do not end this process any more: it is ending by itself. `agreed`: so are all others."""
        self._leaving.set()
        if agreed:
            self._tell(_FINISHED)

    def _tell(self, what: int) -> None:
        for peer in self._peers:
            try:
                distributed.send(torch.tensor([what]), peer, self._group, _TAG)
            except RuntimeError:  # it has ended
                continue

    def _watch(self, peer: int) -> None:
        """Wait for what another rank says; its end without a word is a loss."""
        said = torch.zeros(1, dtype=torch.int64)
        try:
            distributed.recv(said, peer, self._group, _TAG)
        except RuntimeError:
            said.fill_(_LOST)
        if int(said) == _FINISHED:
            return
        if not self._rank and not self._leaving.is_set():
            self._tell(_LOST)
        if not self._leaving.wait(_GRACE_SECONDS):
            try:
                sys.stderr.write(f"lmk: error: {PEER_LOST}\n")
                sys.stderr.flush()
                sys.stdout.flush()
            finally:  # also if nobody reads them
                os._exit(EXIT_ERROR)
