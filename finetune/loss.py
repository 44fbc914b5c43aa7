"""The training objective as pure functions of tensors."""

import torch


def velocity_loss(scheduler, prediction, x0, noise, timestep):
    """Mean squared error of the predicted velocity, float32 scalar.

    prediction, x0, noise: [B, f, 16, h, w]; timestep: int64 [B]. With alphabar the scheduler's
    cumulative alphas, the velocity (Salimans & Ho 2022, "Progressive Distillation") is

        v = sqrt(alphabar) noise - sqrt(1 - alphabar) x0

    The published loss, mean(w (x0_pred - x0)^2) with w = 1 / (1 - alphabar) and
    x0_pred = get_velocity(v_pred, x_t, t), is this by algebra; from bf16 latents that form loses
    all precision near t = 0.
    """
    target = scheduler.get_velocity(x0.float(), noise.float(), timestep)
    return torch.nn.functional.mse_loss(prediction.float(), target)


def denoising_loss(transformer, scheduler, x0, condition, noise, timestep, embedding, rotary):
    """Noise x0 to `timestep`, predict its velocity beside the condition: velocity_loss, a scalar.

    x0, condition, noise: latents [B, f, 16, h, w]; timestep: int64 [B]; embedding: of the prompt,
    [B, length, width]; rotary: of a clip, as the pipeline makes it.
    """
    noisy = scheduler.add_noise(x0.float(), noise.float(), timestep)  # bf16 rounds alphabar to 1
    prediction = transformer(
        hidden_states=torch.cat([noisy.to(x0.dtype), condition], 2),  # [B, f, 32, h, w]
        encoder_hidden_states=embedding,
        timestep=timestep,
        image_rotary_emb=rotary,
        return_dict=False,
    )[0]
    return velocity_loss(scheduler, prediction, x0, noise, timestep)
