"""Wrong answers to the exercises of the roofline: the solution with one mistake, and what must catch it."""

from wrong_answers import Wrong

_FLOPS, _BYTES = "2 * m * n * k", "(m * k + n * k + m * n) * bits / 8"
_MEMORY, _COMPUTE = "nbytes / (gbps * 1e3)", "flops / (tflops * 1e6)"
_SIDES = '"memory" if flops / nbytes < ridge else "compute"'

PYTHON = [
    Wrong("roofline.linear_flops", "runs", "a name that is not there", _FLOPS, "2 * m * n * l"),
    Wrong("roofline.linear_flops", "answers", "no return", f"return {_FLOPS}", _FLOPS),
    Wrong("roofline.linear_flops", "answers", "an answer in words", _FLOPS, f"str({_FLOPS})"),
    Wrong("roofline.linear_flops", "a multiplication and an addition", "multiply-add is one", _FLOPS, "m * n * k"),
    Wrong("roofline.linear_flops", "every row", "one row of x", _FLOPS, "2 * n * k"),
    Wrong("roofline.linear_flops", "value", "one addition less than products", _FLOPS, "(2 * k - 1) * m * n"),
    Wrong("roofline.linear_bytes", "counted in bytes", "bits", "* bits / 8", "* bits"),
    Wrong("roofline.linear_bytes", "the output is written", "inputs alone", " + m * n)", ")"),
    Wrong("roofline.linear_bytes", "the weight is read", "no weight", "m * k + n * k", "m * k"),
    Wrong("roofline.linear_bytes", "each element once", "two loads for each product", "m * k + n * k", "2 * m * n * k"),
    Wrong("roofline.linear_bytes", "value", "bits, and inputs alone", _BYTES, "(m * k + n * k) * bits"),
    Wrong("roofline.swiglu_intensity", "counted in bytes", "bits", "* bits / 8", "* bits"),
    Wrong("roofline.swiglu_intensity", "the output is written", "inputs alone", "+ elements + ", "+ "),
    Wrong(
        "roofline.swiglu_intensity",
        "FLOPs over bytes",
        "bytes a FLOP",
        "4 * elements / nbytes",
        "nbytes / 4 / elements",
    ),
    Wrong("roofline.bound", "the right way round", "swapped", "< ridge", ">= ridge"),
    Wrong("roofline.bound", "held against the ridge", "more FLOPs than bytes", "tflops * 1e3 / gbps", "1"),
    Wrong("roofline.bound", "tera and giga", "TFLOP over GB", "tflops * 1e3 / gbps", "tflops / gbps"),
    Wrong("roofline.bound", "value", "always memory", _SIDES, '"memory"'),
    Wrong("roofline.bound", "answers", "a truth value", _SIDES, "flops / nbytes < ridge"),
    Wrong("roofline.floor_us", "the longer of the two", "the shorter", "max(compute, memory)", "min(compute, memory)"),
    Wrong("roofline.floor_us", "at the same time", "one after the other", "max(compute, memory)", "compute + memory"),
    Wrong("roofline.floor_us", "operations too", "memory alone", "max(compute, memory)", "memory"),
    Wrong("roofline.floor_us", "a GB is a power of ten", "GiB", _MEMORY, "nbytes / (gbps * 2**30) * 1e6"),
    Wrong("roofline.floor_us", "microseconds", "seconds", "max(compute, memory)", "max(compute, memory) / 1e6"),
    Wrong("roofline.floor_us", "value", "each operation twice", _COMPUTE, "2 * flops / (tflops * 1e6)"),
    Wrong("roofline.turning_batch", "some layers never turn", "a negative batch", " if gained > 0 else None", ""),
    Wrong("roofline.turning_batch", "some layers never turn", "divides by what is left", "if gained > 0", "if gained"),
    Wrong(
        "roofline.turning_batch",
        "x and y cross memory too",
        "the weight alone",
        "math.ceil(needed * n * k / gained) if gained > 0 else None",
        "math.ceil(needed / 2)",
    ),
    Wrong("roofline.turning_batch", "the first that is", "rounds down", "math.ceil", "math.floor"),
    Wrong("roofline.turning_batch", "value", "y alone crosses memory", "needed * (n + k)", "needed * n"),
]
