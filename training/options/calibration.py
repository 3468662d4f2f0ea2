"""What a calibration does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.errors import OptionsError
from training.options.checks import at_least, device, positive, share

FitKind = Literal["auto", "linear", "network"]
KINDS: tuple[FitKind, ...] = ("auto", "linear", "network")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateRun:
    """What ``deqlm calibrate`` does.

    Attributes:
        model: checkpoint folder; the map is written into it.
        data: text to fit on, of the kind that will be served, UTF-8, plain, .xz or .gz, or a split
            that deqlm prepare made, such as train.npy.
        valid: held-out text to measure on, likewise; unset for the last tenth of data.
        tokens: how many tokens to fit on, taken evenly from the whole text; too few make a map
            that is worse than none.
        valid_tokens: how many tokens to measure on.
        kind: map to fit, linear (ridge regression) or network (one hidden layer); auto fits both
            and keeps the better one.
        hidden: width of the network's hidden layer.
        epochs: passes of the network's fit over the tokens.
        streams: parts of the text that are solved side by side.
        fit_tol: tolerance of the fixed points that the map is fitted to.
        tol: tolerance that calls of f are counted to.
        max_nfe: calls of f on one token before it is given up.
        window: tokens of one stream that are solved together where text is scored; generation is
            measured one token at a time.
        least_saving: write the map only if it saves this share of the calls of f.
        seed: of the network's first weights and of the order of its samples.
        device: cpu, cuda, or cuda:N.
        threads: CPU threads of one tensor operation, 0 for as many as there are cores.
        json: print JSON instead of text.
    """

    model: Path
    data: Path
    valid: Path | None = None
    tokens: int = 200_000
    valid_tokens: int = 4_000
    kind: FitKind = "auto"
    hidden: int = 512
    epochs: int = 12
    streams: int = 256
    fit_tol: float = 3e-3
    tol: float = 3e-3
    max_nfe: int = 100
    window: int = 16
    least_saving: float = 0.03
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    json: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise OptionsError(f"kind must be auto, linear or network, got {self.kind!r}")
        at_least(self, 1, "tokens", "valid_tokens", "hidden", "epochs", "max_nfe", "window")
        at_least(self, 2, "streams")  # one to fit on, one to choose by
        at_least(self, 0, "seed", "threads")
        positive(self, "fit_tol", "tol")
        share(self, "least_saving")
        device(self, "device")

    @property
    def kinds(self) -> tuple[Literal["linear", "network"], ...]:
        """The maps to fit."""
        return ("linear", "network") if self.kind == "auto" else (self.kind,)
