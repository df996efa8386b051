"""Launch files: a stack's options as a command or a YAML file, a Dynamo graph deployment, an srt-slurm recipe."""

from __future__ import annotations

import re
from typing import Any

from helix_sim.core.escape import comment, kubernetes_word, shell_word, yaml_text
from helix_sim.output.launch_options import Draft, Launched

FILE = "engine.yaml"
"""The file of TensorRT-LLM's options in a deployment."""


def command_text(launched: Launched, draft: Draft, checkpoint: str) -> str:
    """A command of a shell, one option a line, environment variables first."""
    words = [f"{name}={shell_word(value)}" for name, value in draft.environment.items()]
    words.append(f"{launched.stack.serve} {shell_word(checkpoint)}")
    words += [name if value is True else f"{name} {shell_word(value)}" for name, value in draft.options.items()]
    words += [f"{name} {value}" for name, value in draft.of_node.items()]
    return " \\\n  ".join(words) + "\n"


def trtllm_text(launched: Launched, draft: Draft, checkpoint: str) -> str:
    """The options of TensorRT-LLM as YAML, and the command that reads them as a comment."""
    environment = "".join(f"{name}={shell_word(value)} " for name, value in draft.environment.items())
    served = f"{launched.stack.serve} {shell_word(checkpoint)} --extra_llm_api_options THIS_FILE"
    if launched.nodes > 1:
        served = f"srun -N {launched.nodes} --ntasks-per-node {launched.gpus_of_node} trtllm-llmapi-launch {served}"
    return f"{comment(environment + served)}\n" + yaml_text(draft.options)


def dynamo_text(launched: Launched, draft: Draft, checkpoint: str) -> str:
    """A DynamoGraphDeployment: a frontend, and one worker of the layout on as many nodes as it spans."""
    stack, name, dynamo = launched.stack.name, kubernetes_name(launched), launched.stack.dynamo
    args = [dynamo.model_option, checkpoint]
    documents: list[dict[str, Any]] = []
    if stack == "trtllm":
        config = yaml_text(draft.options)
        documents.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {FILE: config}})
        args += ["--extra-engine-args", f"/config/{FILE}"]
    else:
        for option, value in draft.options.items():
            if option in dynamo.instead:
                instead = dynamo.instead[option]
                args += [instead] if instead else []
            else:
                args += [option] if value is True else [option, str(value)]
    gpus = str(launched.gpus_of_node)
    container: dict[str, Any] = {
        "name": "main",
        "image": f"{dynamo.image}:CHOOSE_A_VERSION",
        "command": ["python3", "-m", dynamo.module],
        "args": [kubernetes_word(word) for word in args],
        "env": [{"name": name, "value": kubernetes_word(value)} for name, value in draft.environment.items()],
        "resources": {"requests": {"nvidia.com/gpu": gpus}, "limits": {"nvidia.com/gpu": gpus}},
    }
    pod: dict[str, Any] = {"containers": [container]}
    if stack == "trtllm":
        container["volumeMounts"] = [{"name": "engine", "mountPath": "/config", "readOnly": True}]
        pod["volumes"] = [{"name": "engine", "configMap": {"name": name}}]
    worker: dict[str, Any] = {"name": "Worker", "type": "worker", "replicas": 1, "podTemplate": {"spec": pod}}
    if launched.nodes > 1:
        worker["multinode"] = {"nodeCount": launched.nodes}
    frontend = {
        "name": "main",
        "image": container["image"],
        "command": ["python3", "-m", "dynamo.frontend"],
        "args": ["--http-port", "8000"],
    }
    documents.append(
        {
            "apiVersion": "nvidia.com/v1beta1",
            "kind": "DynamoGraphDeployment",
            "metadata": {"name": name},
            "spec": {
                "backendFramework": stack,
                "components": [
                    {"name": "Frontend", "type": "frontend", "replicas": 1,
                     "podTemplate": {"spec": {"containers": [frontend]}}},
                    worker,
                ],
            },
        }
    )  # fmt: skip
    return "---\n".join(yaml_text(document) for document in documents)


def srt_slurm_text(launched: Launched, draft: Draft, checkpoint: str) -> str:
    """A recipe of srt-slurm: one aggregate worker of the layout, without a benchmark."""
    step, stack = launched.step, launched.stack.name
    owned = launched.stack.srt_slurm.owned
    named = {name.removeprefix("--"): value for name, value in draft.options.items() if name not in owned}
    content = {
        "name": kubernetes_name(launched),
        "model": {"path": checkpoint, "container": "CHOOSE_A_CONTAINER", "precision": step.precision.weights},
        "resources": {
            "gpu_type": step.machine.name.split("-")[0],
            "gpus_per_node": launched.gpus_of_node,
            "agg_nodes": launched.nodes,
            "agg_workers": 1,
            "gpus_per_agg": int(step.layout.gpus),
        },
        "frontend": {"type": launched.stack.srt_slurm.frontend, "enable_multiple_frontends": False},
        "backend": {
            "type": stack,
            "aggregated_environment": dict(draft.environment),
            f"{stack}_config": {"aggregated": named},
        },
        "benchmark": {"type": "manual"},
    }
    return yaml_text(content)


def kubernetes_name(launched: Launched) -> str:
    """A name that Kubernetes takes: letters of the Latin alphabet, digits and dashes, at most 40."""
    text = f"{launched.step.model.name}-{launched.stack.name}-{launched.step.layout.gpus}gpus".lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")[-40:].strip("-") or "helix"
