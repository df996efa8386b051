"""The end of every verb's --help: examples, the names that its options take, and where words are explained."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

EXAMPLES = {
    "explain": (
        "helix-sim explain llama-3.1-405b gb200-nvl72 --context 1M --batch 8 --tpa 8 --kvp 8",
        "helix-sim explain answer.json:2 --timing gb200-trtllm",
    ),
    "capacity": (
        "helix-sim capacity deepseek-r1 gb200-nvl72 --dp 8 --ep 8 --context 128K",
        "helix-sim capacity llama-3.1-405b h200-hgx --tpa 8 --mix 32K:0.7,1M:0.3",
    ),
    "sweep": (
        "helix-sim sweep paper-deepseek-r1 --out out/r1",
        "helix-sim sweep mine.yaml --out out/mine --points all --executor processes --resume",
    ),
    "reproduce": (
        "helix-sim reproduce all --out out/paper",
        "helix-sim reproduce claims --timing gb300-trtllm",
        "helix-sim reproduce beyond --timing gb300-sglang",
    ),
    "regress": (
        "helix-sim regress --baseline baselines",
        "helix-sim regress my-sweep.yaml --baseline baselines --update",
    ),
    "report": (
        "helix-sim report paper-deepseek-r1 --out report.html",
        "helix-sim report mine.yaml --out report.html --timing gb200-trtllm",
    ),
    "import-hf": (
        "helix-sim import-hf config.json --out my-model.yaml",
        "helix-sim import-hf folder-of-a-checkpoint --set sliding_window=null",
    ),
    "recommend": (
        "helix-sim recommend deepseek-r1 gb200-nvl72 --context 128K --ttl-ms 20 --racks 2",
        "helix-sim recommend deepseek-r1 gb200-nvl72 --tokens-per-second 50 --timing gb200-trtllm --confidence 0.9",
    ),
    "export": (
        "helix-sim export answer.json:1 --to trtllm --out generation.yaml",
        "helix-sim export llama-3.1-405b gb200-nvl72 --batch 8 --tpa 8 --kvp 8 --to vllm",
    ),
    "trace": (
        "helix-sim trace answer.json:1 --out step.json",
        "helix-sim trace paper-deepseek-r1:4711",
    ),
    "sensitivity": (
        "helix-sim sensitivity answer.json:1 --out out/limits",
        "helix-sim sensitivity deepseek-r1 gb200-nvl72 --set nvlink_bandwidth=2x --ttl-ms 20",
    ),
    "compare": (
        "helix-sim compare --model deepseek-r1 --machine gb200-nvl72 --machine h200-hgx --context 128K --ttl-ms 30",
        "helix-sim compare my-comparison.yaml --out out/slides",
    ),
    "calibrate": (
        "helix-sim calibrate silicon --system gb200 --framework trtllm --out out/calibration",
        "helix-sim calibrate gpu --out my-gpu.yaml",
    ),
    "validate": (
        "helix-sim validate --kernels --system gb200 --framework trtllm",
        "helix-sim validate --measurements mine.csv --timing h200-vllm",
    ),
    "models": ("helix-sim models", "helix-sim models --json"),
    "machines": ("helix-sim machines", "helix-sim machines --json"),
    "check": ("helix-sim check my-model.yaml my-machine.yaml", "helix-sim check mine.yaml --json"),
    "schema": ("helix-sim schema model > model.schema.json", "helix-sim schema answer"),
}
"""Two commands of each verb."""

WORDS = (
    "Words: TTL is the token-to-token latency of one user. TPA and TPF are the tensor-parallel widths of attention and "
    "of the FFN, KVP shards the KV cache by sequence, HOP-B overlaps its exchange with attention in chunks of the "
    "batch, Medha is KVP whose FFN runs on one shard. What binds an op is the limit that sets its time; wire is the "
    "number format on links. docs/reference/glossary.md has every word that is printed."
)
"""What the verbs' shortest words stand for."""
WORDS_OF = {
    "regress": "Words: hypervolume is the area under a curve, its change says how far a whole curve moved; vertical "
    "and horizontal are the largest moves of throughput and interactivity. docs/reference/glossary.md has the rest.",
    "validate": "Words: the effective batch of a serving is the mean number of its requests in flight; bias is the "
    "mean signed error, covered the share of rows inside the 80 % interval. docs/reference/glossary.md has the rest.",
}
"""Words that one verb alone prints."""


class Verb(TyperCommand):
    """A command whose help ends with examples and with the names that its options take."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, its end first made from what is shipped."""
        self.epilog = "\n\n".join([*self._examples(), *self._names()])
        super().format_help(ctx, formatter)

    def _examples(self) -> list[str]:
        found = EXAMPLES.get(self.name or "", ())
        return ["Examples:", *found] if found else []

    def _names(self) -> list[str]:
        """The names that the options and arguments of the verb take, those that are shipped."""
        from helix_sim.specs.load import shipped, shipped_families

        options = {name for parameter in self.params for name in parameter.opts}
        arguments = {parameter.name for parameter in self.params if parameter.param_type_name == "argument"}
        found = []
        if {"model", "source"} & arguments or "--model" in options:
            found.append(f"Models: {', '.join(shipped('model'))}.")
            found.append(f"Machines: {', '.join(shipped('machine'))}.")
        if {"sweep", "sweeps", "source"} & arguments:
            found.append(f"Sweeps: {', '.join(shipped('sweep'))}.")
        if "--family" in options:
            titles = (f"{name} ({family.title})" for name, family in shipped_families().items())
            found.append(f"Families: {', '.join(titles)}.")
        if "--timing" in options:
            found.append(f"Timings: {', '.join(shipped('timing'))}.")
        if "--weights" in options:
            from helix_sim.core.units import FORMAT_BITS

            found.append(f"Number formats: {', '.join(FORMAT_BITS)}.")
        if "--set" in options and "--ttl-ms" in options:
            from helix_sim.answers.sensitivity import SEARCH_KNOBS

            found.append(f"Knobs: {', '.join(SEARCH_KNOBS)}.")
        words = WORDS if {"--tpa", "--ttl-ms"} & options else WORDS_OF.get(self.name or "")
        return [*found, words] if words else found
