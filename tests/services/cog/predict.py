"""A model that takes time, and makes a file. What it does is in its prompt: `for 2.5` (seconds), `explode`.

It writes a line to VIDGEN_COG_RUNS when a run begins and when it ends.
"""

import os
import tempfile
import time

from cog import BasePredictor, Input, Path

SLICE = 0.05


def note(line: str) -> None:
    with open(os.environ["VIDGEN_COG_RUNS"], "a", encoding="utf-8") as runs:
        runs.write(line + "\n")


class Predictor(BasePredictor):
    def predict(
        self,
        prompt: str = Input(description="What it does"),
        width: int = Input(default=640),
        height: int = Input(default=360),
        duration: float = Input(default=5),
    ) -> Path:
        note("begun")
        try:
            if "explode" in prompt:
                raise ValueError(f"cannot do this: {prompt}")
            seconds = float(prompt.split("for ")[1].split()[0]) if "for " in prompt else 0.1
            end = time.monotonic() + seconds
            # In slices, since a cancel comes between two of them.
            while time.monotonic() < end:
                time.sleep(SLICE)
            path = tempfile.mktemp(suffix=".mp4")
            with open(path, "wb") as file:
                # The head of an MP4, and more than fits into one packet.
                file.write(b"\0\0\0\x18ftypisom\0\0\0\0isomcog!")
                file.write(f"{width}x{height} {duration}".encode() + b"\n" + b"v" * 300_000)
        except BaseException as error:
            note(type(error).__name__)
            raise
        note("done")
        return Path(path)
