"""Wrong answers to the exercises of the waterfall: the solution with one mistake, and what must catch it."""

from wrong_answers import Wrong

_SHARE, _WHOLE = "calls * kernel_us / whole_us", "1 / (1 - share + share / kernel)"
_TOGETHER = "1 / (rest + share / kernel + other_share / other_kernel)"
_SEEN = "max(gpu_us, cpu_us) / max(faster_us, cpu_us)"
_ALLOWED = "share / allowed if allowed > 0 else None"

PYTHON = [
    Wrong("waterfall.share", "runs", "a name that is not there", _SHARE, "calls * kernel / whole_us"),
    Wrong("waterfall.share", "answers", "no return", f"return {_SHARE}", _SHARE),
    Wrong("waterfall.share", "answers", "an answer in words", _SHARE, f'f"{{{_SHARE}:.0%}}"'),
    Wrong("waterfall.share", "every call", "one call", _SHARE, "kernel_us / whole_us"),
    Wrong("waterfall.share", "part over whole", "upside down", _SHARE, "whole_us / (calls * kernel_us)"),
    Wrong(
        "waterfall.share",
        "the whole has the part in it",
        "part over part and whole",
        _SHARE,
        "calls * kernel_us / (calls * kernel_us + whole_us)",
    ),
    Wrong("waterfall.share", "a fraction", "percent", _SHARE, f"100 * {_SHARE}"),
    Wrong("waterfall.share", "value", "one call less", "calls *", "(calls - 1) *"),
    Wrong("waterfall.whole", "the rest stays", "the kernel's part alone", _WHOLE, "1 / (share / kernel)"),
    Wrong("waterfall.whole", "the right way round", "the time", _WHOLE, "1 - share + share / kernel"),
    Wrong("waterfall.whole", "times are added, not speeds", "mean of speeds", _WHOLE, "1 - share + share * kernel"),
    Wrong("waterfall.whole", "value", "the kernel's own gain", _WHOLE, "kernel"),
    Wrong("waterfall.at_most", "the rest stays", "the share's own", "1 / (1 - share)", "1 / share"),
    Wrong("waterfall.at_most", "the right way round", "the time", "1 / (1 - share)", "1 - share"),
    Wrong("waterfall.at_most", "times, not their difference", "what is saved", "1 / (1 - share)", "1 + share"),
    Wrong("waterfall.at_most", "value", "a kernel twice as fast", "1 / (1 - share)", "1 / (1 - share / 2)"),
    Wrong("waterfall.kernel_needed", "some goals are out of reach", "below zero", " if allowed > 0 else None", ""),
    Wrong("waterfall.kernel_needed", "some goals are out of reach", "divides", "if allowed > 0", "if allowed"),
    Wrong("waterfall.kernel_needed", "a share of the gain", "in proportion", _ALLOWED, "1 + (whole - 1) / share"),
    Wrong("waterfall.kernel_needed", "more than the whole", "the goal itself", _ALLOWED, "whole"),
    Wrong("waterfall.kernel_needed", "value", "the rest left out", "1 / whole - (1 - share)", "1 / whole"),
    Wrong(
        "waterfall.together",
        "shares of one whole",
        "the product of both gains",
        _TOGETHER,
        "1 / (1 - share + share / kernel) / (1 - other_share + other_share / other_kernel)",
    ),
    Wrong(
        "waterfall.together",
        "times are added, not speeds",
        "the sum of both gains",
        _TOGETHER,
        "1 / (1 - share + share / kernel) + 1 / (1 - other_share + other_share / other_kernel) - 1",
    ),
    Wrong("waterfall.together", "the rest stays", "no rest", "rest + share", "share"),
    Wrong("waterfall.together", "value", "the first alone", " - other_share", ""),
    Wrong("waterfall.seen", "launches take time too", "the GPU alone", _SEEN, "gpu_us / faster_us"),
    Wrong(
        "waterfall.seen",
        "at the same time",
        "one after the other",
        _SEEN,
        "(gpu_us + cpu_us) / (faster_us + cpu_us)",
    ),
    Wrong("waterfall.seen", "launches bound both", "then the GPU alone", "max(faster_us, cpu_us)", "faster_us"),
    Wrong("waterfall.seen", "value", "upside down", _SEEN, "max(faster_us, cpu_us) / max(gpu_us, cpu_us)"),
]
