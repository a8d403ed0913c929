"""`python -m vauban.hosts.vllm`: vLLM's API server, as `python -m` of vLLM's own module starts it.

multiprocessing imports the main module again in the engine and in each worker. Of a package's
`__main__` it does not, so those processes don't load an API server that they have no use for.
"""

import runpy

runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")
