import logging

# torchao says at import that kernels of its own, which are not used here, do not load
logging.getLogger("torchao").setLevel(logging.ERROR)
