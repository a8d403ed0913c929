"""The policy of the sandbox that code of a model runs in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vauban.policy_base import Section, field

_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"


class SandboxPolicy(Section):
    """Where the model's code runs (`vauban sandbox`), and what it may use."""

    floor: Literal["vm", "gvisor", "wasm", "bubblewrap"] = field(
        "vm",
        "Weakest isolation that code may run in. vm: a virtual machine, by the processor (vm-hw) or"
        " else emulated in a jail (vm-tcg). gvisor: also runsc, where no virtual machine works."
        " This version has no wasm and no bubblewrap alone: they mean gvisor.",
    )
    runner: Literal["local", "kubernetes"] = field(
        "local", "Who runs programs: this machine, or a cluster (extra kubernetes), then nothing"
        " runs on this machine.",
    )  # fmt: skip
    gvisor_root: Path | None = field(
        None,
        "Directory with the root file system that programs see under gVisor, such as the guest's"
        " image unpacked; Python 3.9 or later must be in it.",
    )
    kubernetes_namespace: str = field(
        "vauban-sandbox", "Namespace of the cluster that programs run in; for nothing else.",
        max_length=63, pattern=_LABEL,
    )  # fmt: skip
    kubernetes_runtime_class: str = field(
        "kata",
        "RuntimeClass of the pods. Its handler must be Kata's (kata, kata-qemu, ...), or gVisor's"
        " (runsc, gvisor) where the floor is gvisor or lower.",
        max_length=253, pattern=_SUBDOMAIN,
    )  # fmt: skip
    kubernetes_image: str | None = field(
        None, "Image of the pods, with Python 3.9 or later; best by its digest.", max_length=512
    )
    kubernetes_resource: Literal["pod", "agent-sandbox"] = field(
        "pod",
        "What is made for each guest: a Pod, or a Sandbox of the agent-sandbox project"
        " (agents.x-k8s.io/v1beta1), whose controller makes the pod and removes both in time.",
    )
    kubernetes_start_s: int = field(60, "Longest time until a pod runs.", "seconds", ge=1, le=3600)
    kubernetes_pod_s: int = field(
        900,
        "Longest life of a pod, also of one that was left behind; more than a program's time.",
        "seconds", ge=10, le=86_400,
    )  # fmt: skip
    image: Path | None = field(
        None,
        "Directory of the guest's image; default: where `vauban sandbox build` puts it, in the"
        " Python environment.",
    )
    memory_mb: int = field(128, "Memory of one virtual machine.", "MiB", ge=112, le=4096)
    wall_s: int = field(10, "Longest time a program may run.", "seconds", ge=1, le=3600)
    cpu_s: int = field(
        10, "Most processor time of a program with all its processes.", "seconds", ge=1, le=3600
    )
    max_processes: int = field(
        32, "Most processes and threads of a program.", "processes", ge=1, le=1024
    )
    disk_mb: int = field(
        64, "Size of each of a program's writable places; they lie in its memory.", "MiB", ge=1,
        le=4096,
    )  # fmt: skip
    max_file_mb: int = field(16, "Largest file that a program may write.", "MiB", ge=1, le=4096)
    max_output_bytes: int = field(
        262_144, "Most that a program may print; then it is ended.", "bytes", ge=1024, le=16_777_216
    )
    max_code_bytes: int = field(65_536, "Largest program.", "bytes", ge=256, le=4_194_304)
    max_input_bytes: int = field(
        4_194_304, "Most that all files put beside a program may have.", "bytes", ge=0,
        le=67_108_864,
    )  # fmt: skip
    max_result_bytes: int = field(
        4_194_304, "Most that all files taken out may have.", "bytes", ge=0, le=67_108_864
    )
    per: Literal["execution", "session"] = field(
        "execution",
        "A virtual machine for each program, or one for all programs of a session (of a request to"
        " the model server), which then see each other's files.",
    )
    pool: int = field(
        1, "Virtual machines that are kept ready; each takes about memory_mb.", "", ge=0, le=64
    )
    max_running: int = field(2, "Virtual machines that run programs at once.", "", ge=1, le=256)
    max_waiting: int = field(16, "Programs that may wait for one.", "", ge=0, le=4096)
    max_sessions: int = field(
        256, "Sessions of the tool server at once; more are refused.", "sessions", ge=1, le=65_536
    )
    max_calls: int = field(
        20, "Most tool calls of one request to the model server.", "calls", ge=1, le=10_000
    )
    max_text_chars: int = field(
        32_768, "Most characters of a program's output that the model gets.", "characters", ge=256,
        le=1_048_576,
    )  # fmt: skip
