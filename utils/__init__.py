import logging

# torchao says at import that kernels of its own, which are not used here, do not load
logging.getLogger("torchao").setLevel(logging.ERROR)
# diffusers warns of missing tensors, which pipeline.py refuses in one line
logging.getLogger("diffusers.models.modeling_utils").setLevel(logging.ERROR)
