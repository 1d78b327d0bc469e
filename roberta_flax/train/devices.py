"""The devices that a training run takes: a mesh that fits its batches, and hosts that join."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from roberta_flax.errors import InputError
from roberta_flax.nn import sharding


def mesh_for(
    batch_size: int, *, data_parallel: int | None = None, tensor_parallel: int = 1, distributed: bool = False
) -> Mesh | None:
    """The devices that share a run's batches, as FineTuning.run and Pretraining.run take them.

    Args:
      batch_size: rows that all devices compute together.
      data_parallel: number of devices that share the rows; all, less those of tensor_parallel, if not given.
      tensor_parallel: number of devices that share each layer.
      distributed: whether this process is one of several hosts (jax.distributed), whose devices all take part. JAX must
        not have been asked for its devices before.

    Returns:
      The mesh; None for one device.

    Raises:
      InputError: more devices than there are, a batch size that they do not divide, or hosts that do not meet.
    """
    if distributed:
        if data_parallel is not None:
            raise InputError("data_parallel is for one host; with distributed, all devices of all hosts take part")
        join_hosts()
    devices = jax.devices()
    if data_parallel is not None:
        wanted = data_parallel * tensor_parallel
        if not 1 <= wanted <= len(devices):
            raise InputError(
                f"data_parallel times tensor_parallel must be from 1 to the {len(devices)} devices here, got {wanted}"
            )
        devices = devices[:wanted]
    mesh = sharding.mesh(devices, tensor_parallel)
    parts = mesh.shape[sharding.DATA]
    if batch_size % parts:
        raise InputError(
            f"batch_size must be a multiple of the {parts} devices that share its rows, got {batch_size}; change it, "
            "or limit their number with data_parallel"
        )
    return mesh if mesh.size > 1 else None


def join_hosts() -> None:
    """Makes this process one of several (jax.distributed).

    Raises:
      InputError: the hosts do not meet.
    """
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"jax.distributed: {' '.join(str(error).split())[:300]}") from None
