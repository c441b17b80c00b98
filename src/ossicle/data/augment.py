"""Declare the settings of augmentation; `ossicle.data.augmentation` implements them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ossicle.section import UserPath, section

if TYPE_CHECKING:
    from ossicle.data.augmentation import Augmentation

Decibels = Annotated[float, Field(ge=-100, le=100)]


@section
class AugmentConfig:
    """Augmentation of the training data. Everything is off by default; development data is never augmented."""

    speed: list[Annotated[float, Field(ge=0.5, le=2)]] = Field(default_factory=list)
    """Speed factors of which one is drawn per utterance, such as [0.9, 1.0, 1.1]. The pitch changes too. Durations for
    ``data.max_batch_s`` are those before the change. Default: none."""
    noise_snr_db: tuple[Decibels, Decibels] | None = None
    """Lowest and highest signal-to-noise ratio in dB, such as [5, 30]; one is drawn per utterance. Default: no
    noise."""
    noise: list[UserPath] = Field(default_factory=list)
    """Manifests of noise recordings; one is drawn per utterance. Default: white noise."""
    gain_db: tuple[Decibels, Decibels] | None = None
    """Lowest and highest gain in dB, such as [-10, 10]; one is drawn per utterance. Default: no gain."""
    time_masks: int = Field(default=0, ge=0, le=1000)
    """Number of time masks per utterance (SpecAugment). The masked encoder frames are replaced by the utterance's mean
    frame."""
    time_mask_s: float = Field(default=0.2, gt=0, le=60)
    """Length of the longest time mask in seconds; each length is drawn between 0 and this."""
    feature_masks: int = Field(default=0, ge=0, le=1000)
    """Number of feature masks per utterance. A masked band of features is replaced by its mean over the utterance."""
    feature_mask_share: float = Field(default=0.1, gt=0, le=1)
    """Width of the widest feature mask, as a share of all features."""
    train_mode_encoder: bool = False
    """Run the encoder in training mode, with its own dropout, layer drop and SpecAugment, as the official code does."""

    @property
    def waveform_options(self) -> list[str]:
        """Return the names of the options that are on and change waveforms."""
        on = {"speed": self.speed, "noise_snr_db": self.noise_snr_db, "gain_db": self.gain_db}
        return [name for name, value in on.items() if value]

    @property
    def model_options(self) -> list[str]:
        """Return the names of the options that are on and change the encoder's frames."""
        masks = {"time_masks": self.time_masks, "feature_masks": self.feature_masks}
        on = {**masks, "train_mode_encoder": self.train_mode_encoder}
        return [name for name, value in on.items() if value]

    def build(self, *, seed: int) -> Augmentation | None:
        """Return the augmentation of waveforms, which also makes the seeds of the others; None if all are off."""
        from ossicle.data.augmentation import Augmentation  # most runs have no augmentation

        return Augmentation(self, seed=seed) if self.waveform_options or self.model_options else None
