"""Wrong answers to the exercises on timing: the solution with one mistake, and what must catch it."""

from wrong_answers import Wrong

_BOTH = "    if not synchronized:\n        return launch_us\n"
_LOOP = "(launch_us + (calls - 1) * between + kernel_us) / calls"
_MEDIANS = 'statistics.median(times["B"]) / statistics.median(times["A"])'
_ORDER = '"AB" * count if in_turns else "A" * count + "B" * count'
_VERDICT = '"impossible" if us < 0.9 * floor else "possible"'

PYTHON = [
    Wrong("timing.loop_us", "runs", "a name that is not there", "between =", "in_between ="),
    Wrong("timing.loop_us", "answers", "no return", f"return {_LOOP}", _LOOP),
    Wrong("timing.loop_us", "waits for the GPU", "launches alone", _LOOP, "launch_us"),
    Wrong("timing.loop_us", "waits only where it synchronizes", "always waits", _BOTH, ""),
    Wrong("timing.loop_us", "at the same time", "one after the other", _LOOP, "launch_us + kernel_us"),
    Wrong("timing.loop_us", "both ends", "the slower of the two", _LOOP, "between"),
    Wrong(
        "timing.loop_us",
        "of one call",
        "the whole loop",
        f"{_BOTH}    between = max(launch_us, kernel_us)  # from the end of one kernel to the end of the next\n"
        f"    return {_LOOP}",
        "    between = max(launch_us, kernel_us)\n"
        "    return launch_us + (calls - 1) * between + kernel_us if synchronized else calls * launch_us",
    ),
    Wrong("timing.loop_us", "value", "the faster of the two", "max(launch_us, kernel_us)", "min(launch_us, kernel_us)"),
    Wrong("timing.median_interval", "runs", "no such function", "math.comb", "math.choose"),
    Wrong("timing.median_interval", "answers", "both ends", "return low", "return low, count - 1 - low"),
    Wrong("timing.median_interval", "both sides", "one side alone", "2 * tail", "tail"),
    Wrong("timing.median_interval", "the last that holds", "one too many", "return low", "return low + 1"),
    Wrong(
        "timing.median_interval",
        "of the median, not of the samples",
        "95% of the samples",
        "return low",
        "return int(0.025 * count)",
    ),
    Wrong(
        "timing.median_interval",
        "counted, not approximated",
        "a bell curve",
        "return low",
        "return max(0, int(count / 2 - 0.98 * count**0.5))",
    ),
    Wrong("timing.median_interval", "value", "the middle half", "return low", "return count // 4"),
    Wrong("timing.apparent_ratio", "two orders", "never in turns", _ORDER, '"A" * count + "B" * count'),
    Wrong("timing.apparent_ratio", "first all of A", "always in turns", _ORDER, '"AB" * count'),
    Wrong(
        "timing.apparent_ratio",
        "one sample later",
        "turns undo it all",
        f"return {_MEDIANS}",
        f"return 1.0 if in_turns else {_MEDIANS}",
    ),
    Wrong(
        "timing.apparent_ratio",
        "B goes on where A ended",
        "B begins anew",
        "1 + drift * n",
        "1 + drift * (n if in_turns else n % count)",
    ),
    Wrong(
        "timing.apparent_ratio",
        "B over A",
        "A over B",
        _MEDIANS,
        'statistics.median(times["A"]) / statistics.median(times["B"])',
    ),
    Wrong("timing.apparent_ratio", "value", "n from 1", "1 + drift * n", "1 + drift * (n + 1)"),
    Wrong("timing.verdict", "answers", "a truth value", _VERDICT, "us < 0.9 * floor"),
    Wrong("timing.verdict", "a tenth is allowed", "not by a hair", "0.9 * floor", "floor"),
    Wrong("timing.verdict", "operations too", "memory alone", "max(compute, memory)", "memory"),
    Wrong("timing.verdict", "bytes too", "operations alone", "max(compute, memory)", "compute"),
    Wrong("timing.verdict", "microseconds", "a floor in seconds", "0.9 * floor", "0.9 * floor / 1e6"),
    Wrong("timing.verdict", "too fast, not too slow", "swapped", "us < 0.9", "us >= 0.9"),
    Wrong("timing.verdict", "value", "half of the floor", "0.9 * floor", "0.1 * floor"),
]
