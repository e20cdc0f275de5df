"""The exercises of the waterfall's chapter: what each asks for, and the mistakes that its value tells."""

from __future__ import annotations

from lab.check.calculation import Calculation, Mistake

_RIGHT_WAY = "the right way round"
_SPEED_SAYS = "The answer is how many times as fast: above 1 where the new kernel is the faster one."
_SPEED_HINT = "If the whole takes half the time, how many times as fast is it?"
_REST = "the rest stays"
_REST_SAYS = "What is not the kernel takes as long as before, and still counts."
_REST_HINT = "Of a whole that takes 1, how much is not the kernel's?"


def _whole(share: float, kernel: float) -> float:
    """Amdahl's law."""
    return 1 / (1 - share + share / kernel)


SHARE = Calculation(
    "waterfall.share",
    "The share of an operator's kernels",
    lambda calls, kernel_us, whole_us: calls * kernel_us / whole_us,
    (
        {"calls": 1, "kernel_us": 10, "whole_us": 80},
        {"calls": 8, "kernel_us": 30, "whole_us": 7000},
        {"calls": 65, "kernel_us": 400, "whole_us": 90000},
    ),
    (
        Mistake(
            "every call",
            "An operator is called more than once, and every call counts.",
            "How many norms has a model of four layers?",
            lambda calls, kernel_us, whole_us: kernel_us / whole_us,
        ),
        Mistake(
            "part over whole",
            "A share is between 0 and 1.",
            "Which of the two times is the longer one?",
            lambda calls, kernel_us, whole_us: whole_us / (calls * kernel_us),
        ),
        Mistake(
            "the whole has the part in it",
            "The whole's time includes the kernels'.",
            "What would the share be if there were nothing else in the whole?",
            lambda calls, kernel_us, whole_us: calls * kernel_us / (calls * kernel_us + whole_us),
        ),
        Mistake(
            "a fraction",
            "A share is a fraction here, not a percentage.",
            "What is the share of all that there is?",
            lambda calls, kernel_us, whole_us: 100 * calls * kernel_us / whole_us,
        ),
    ),
)

WHOLE = Calculation(
    "waterfall.whole",
    "What is left of a kernel's gain",
    _whole,
    (
        {"share": 0.5, "kernel": 2},
        {"share": 0.04, "kernel": 1.5},
        {"share": 0.75, "kernel": 0.98},
        {"share": 1, "kernel": 3},
    ),
    (
        Mistake(_REST, _REST_SAYS, _REST_HINT, lambda share, kernel: kernel / share),
        Mistake(_RIGHT_WAY, _SPEED_SAYS, _SPEED_HINT, lambda share, kernel: 1 - share + share / kernel),
        Mistake(
            "times are added, not speeds",
            "The parts of a whole run one after the other: what adds up is their times.",
            "You go half of the way at 1 km/h and half at 3 km/h. Do you average 2 km/h?",
            lambda share, kernel: 1 - share + share * kernel,
        ),
    ),
)

AT_MOST = Calculation(
    "waterfall.at_most",
    "The most that any kernel can bring",
    lambda share: 1 / (1 - share),
    ({"share": 0.5}, {"share": 0.04}, {"share": 0.75}),
    (
        Mistake(_REST, _REST_SAYS, _REST_HINT, lambda share: 1 / share),
        Mistake(_RIGHT_WAY, _SPEED_SAYS, _SPEED_HINT, lambda share: 1 - share),
        Mistake(
            "times, not their difference",
            "What is saved is no speedup: without a tenth of its time, the whole is more than 1.1 times as fast.",
            "What is left of the time, and how often does it fit into the time before?",
            lambda share: 1 + share,
        ),
    ),
)


def _needed(share: float, whole: float) -> float:
    return share / (1 / whole - 1 + share)


KERNEL_NEEDED = Calculation(
    "waterfall.kernel_needed",
    "The kernel that a goal takes",
    lambda share, whole: _needed(share, whole) if whole * (1 - share) < 1 else None,
    (
        {"share": 0.5, "whole": 1.25},
        {"share": 0.75, "whole": 2},
        {"share": 0.04, "whole": 1.02},
        {"share": 0.04, "whole": 1.1},
        {"share": 0.25, "whole": 3},
    ),
    (
        Mistake(
            "some goals are out of reach",
            "Where even a kernel that takes no time is not enough, the answer is None.",
            "Exercise 3: what is the most that this share allows?",
            _needed,
        ),
        Mistake(
            "a share of the gain",
            "Gains are not proportional to shares: the less is left of the kernel, the less there is to save.",
            "Put your answer into exercise 2. Does the goal come out?",
            lambda share, whole: 1 + (whole - 1) / share,
        ),
        Mistake(
            "more than the whole",
            "The kernel is a part of the whole, and has to gain more than it.",
            "Does your answer use the share?",
            lambda share, whole: whole,
        ),
    ),
)

TOGETHER = Calculation(
    "waterfall.together",
    "Two operators at once",
    lambda share, kernel, other_share, other_kernel: (
        1 / (1 - share - other_share + share / kernel + other_share / other_kernel)
    ),
    (
        {"share": 0.5, "kernel": 2, "other_share": 0.25, "other_kernel": 2},
        {"share": 0.04, "kernel": 1.5, "other_share": 0.75, "other_kernel": 0.98},
        {"share": 0.25, "kernel": 4, "other_share": 0.75, "other_kernel": 1},
    ),
    (
        Mistake(
            "shares of one whole",
            "Both shares are of the time before anything was replaced; gains of the whole cannot be multiplied.",
            "With the first kernel in place the whole is shorter. What is the second one's share of that?",
            lambda share, kernel, other_share, other_kernel: _whole(share, kernel) * _whole(other_share, other_kernel),
        ),
        Mistake(
            "times are added, not speeds",
            "The parts of a whole run one after the other: what adds up is their times.",
            "How long does each of three parts take, the third of which nobody replaced?",
            lambda share, kernel, other_share, other_kernel: (
                _whole(share, kernel) + _whole(other_share, other_kernel) - 1
            ),
        ),
        Mistake(
            _REST,
            _REST_SAYS,
            _REST_HINT,
            lambda share, kernel, other_share, other_kernel: 1 / (share / kernel + other_share / other_kernel),
        ),
    ),
)


def _bound(gpu_us: float, launches: int, launch_us: float) -> float:
    return max(gpu_us, launches * launch_us)


SEEN = Calculation(
    "waterfall.seen",
    "What the caller sees",
    lambda gpu_us, faster_us, launches, launch_us: (
        _bound(gpu_us, launches, launch_us) / _bound(faster_us, launches, launch_us)
    ),
    (
        {"gpu_us": 1500, "faster_us": 1200, "launches": 20, "launch_us": 10},
        {"gpu_us": 1500, "faster_us": 1200, "launches": 20, "launch_us": 100},
        {"gpu_us": 1500, "faster_us": 1200, "launches": 130, "launch_us": 10},
    ),
    (
        Mistake(
            "launches take time too",
            "The GPU cannot run what has not been launched.",
            "Which of the four arguments have you used?",
            lambda gpu_us, faster_us, launches, launch_us: gpu_us / faster_us,
        ),
        Mistake(
            "at the same time",
            "While the GPU runs one kernel, the CPU launches the next: neither waits for the other to be done.",
            "Two people wash and dry the dishes. How long do they take?",
            lambda gpu_us, faster_us, launches, launch_us: (
                (gpu_us + launches * launch_us) / (faster_us + launches * launch_us)
            ),
        ),
        Mistake(
            "launches bound both",
            "The faster kernels have to be launched as often.",
            "The GPU is done in no time. What does the caller still wait for?",
            lambda gpu_us, faster_us, launches, launch_us: _bound(gpu_us, launches, launch_us) / faster_us,
        ),
    ),
)

EXERCISES = (SHARE, WHOLE, AT_MOST, KERNEL_NEEDED, TOGETHER, SEEN)
