"""Why a picture is not decoded, as an exception, and the budget of memory that every decoder keeps to."""

MAX_DECODED_BYTES = 512_000_000  # of one picture: everything that its decoder and the conversion to RGB allocate


class Refused(Exception):  # noqa: N818 - not an error of the program
    """A picture that is not decoded: one of `REJECT_REASONS`, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def check_memory(num_bytes: int, what: str) -> None:
    """Raise Refused if decoding a picture needs more than `MAX_DECODED_BYTES`; `what` describes it for the detail."""
    if num_bytes > MAX_DECODED_BYTES:
        needs = f"needs {num_bytes / 1e6:,.0f} MB of memory, more than {MAX_DECODED_BYTES / 1e6:,.0f} MB"
        raise Refused("too-large", f"{what}: decoding {needs}")
