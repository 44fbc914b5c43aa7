import logging

logging.getLogger("torchao").setLevel(logging.ERROR)  # says at import that its own kernels, not used here, do not load
