"""accelerate launch without the notes of its libraries, for finetune_cognvs.sh."""

import logging
import os

import torch


def main():
    logging.getLogger("torchao").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would say that it finds no GPU
    from accelerate.commands.launch import main as launch

    launch()


if __name__ == "__main__":
    main()
