"""llama.cpp's own server on a free port, run by the environment `llama-cpp`: its address is the first line."""

import sys
import threading

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.model_alias = ["tiny"]
params.port = 0
params.n_ctx = 512
params.n_parallel = 2
params.cpuparams.n_threads = 1
params.warmup = False
params.endpoint_slots = True
params.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
threading.Event().wait()
