"""From a raw sample to decoded pictures that pass every filter, or the reason why not.

    admission = Admission(FilterConfig(min_side_px=256), smallest_px=512)
    filters = admission.filters(known=None)                 # new for each raw shard
    admission.admit(sample, filters)                        # {"image": <picture>}, or Rejected(…)

Tokenising and the search for duplicates admit samples here, both the same ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.raw.shards import RawSample, Rejected
from data_pipeline.tokenizing.filters import FilterConfig, Filters
from data_pipeline.tokenizing.fitting import Pictures, decode
from mgpt.images.pixels import MAX_PIXELS
from mgpt.tasks.registry import READINGS, is_own


@dataclass(frozen=True)
class Admission:
    """Which samples are used, beside those that are too small for a resolution.

    smallest_px: the smallest resolution; 0 where pictures are enlarged.
    """

    filter_config: FilterConfig
    smallest_px: int = 0
    rotate_exif: bool = True
    max_pixels: int = MAX_PIXELS
    convert_palette: bool = True

    def filters(self, known: Mapping[str, Rejected] | None) -> Filters:
        """The filters of one raw shard, with the duplicates in it that are known beforehand."""
        return Filters(self.filter_config, known, self.smallest_px)

    def admit(self, item: RawSample | Rejected, filters: Filters) -> Pictures | Rejected:
        """The sample's decoded pictures, or why it is not used at any resolution."""
        return self.compare(item, self.decode(item, filters), filters)

    def decode(self, item: RawSample | Rejected, filters: Filters) -> Pictures | Rejected:
        """The first half of `admit`, which sees one sample alone: any order, any thread."""
        if isinstance(item, Rejected):
            return item
        named = (name for name in item.meta.get("tasks", ()) if not is_own(name))
        unknown = sorted(set(named) - READINGS.keys())
        if unknown:
            return Rejected(item.key, "unknown_task", ", ".join(unknown))
        if filtered := filters.before_decoding(item):
            return filtered
        return decode(item, self.rotate_exif, self.max_pixels, self.convert_palette)

    def compare(
        self, item: RawSample | Rejected, decoded: Pictures | Rejected, filters: Filters
    ) -> Pictures | Rejected:
        """The second half, with the samples before it: in their order."""
        if isinstance(item, Rejected) or isinstance(decoded, Rejected) or not decoded:
            return decoded
        return filters.after_decoding(item, decoded) or decoded
