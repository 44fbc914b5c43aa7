"""The sampler of CogVideoX, which does not let the GPU wait: same steps as diffusers', same noise of a seed."""

import torch
from diffusers import CogVideoXDPMScheduler


class Scheduler(CogVideoXDPMScheduler):
    """DPM-Solver++ (2M, SDE; Lu et al. 2022) for velocity prediction.

    diffusers' own step reads its timestep back from the GPU, which takes until the pass that was asked for is done, and
    only then draws noise on the CPU. This one knows its timesteps and draws while the GPU computes. It is to be called
    once for each timestep, in their order.
    """

    def set_timesteps(self, num_inference_steps, device=None):
        super().set_timesteps(num_inference_steps, device)
        self.ahead = [None, *self.timesteps.tolist()]  # the timestep before the next step's, its own, all later ones

    def step(self, model_output, old_pred_original_sample, timestep, timestep_back, sample, generator=None,
             return_dict=False):  # fmt: skip
        """(the next sample, x0 as predicted), both [B, f, 16, h, w]; generator: of the CPU."""
        back, now = self.ahead.pop(0), self.ahead[0]
        later = now - self.config.num_train_timesteps // self.num_inference_steps
        first_order = old_pred_original_sample is None or later < 0
        for _ in range(1 if first_order else 2):  # diffusers draws twice, for a step of first order and this one
            noise = torch.randn(sample.shape, generator=generator, dtype=sample.dtype, pin_memory=sample.is_cuda)
        noise = noise.to(sample.device, non_blocking=True)
        alpha, alpha_back = self.alphas_cumprod[now], None if back is None else self.alphas_cumprod[back]
        alpha_later = self.alphas_cumprod[later] if later >= 0 else self.final_alpha_cumprod
        h, r, *_ = self.get_variables(alpha, alpha_later, alpha_back)
        ours, theirs, *both = self.get_mult(h, r, alpha, alpha_later, alpha_back)
        x0 = alpha**0.5 * sample - (1 - alpha) ** 0.5 * model_output
        mean = x0 if first_order else both[0] * x0 - both[1] * old_pred_original_sample
        sigma = (1 - alpha_later) ** 0.5 * (1 - (-2 * h).exp()) ** 0.5
        return ours * sample - theirs * mean + sigma * noise, x0
