"""The devices of a training run: a mesh that divides its batches, and jax.distributed for several hosts."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from roberta_flax.errors import InputError
from roberta_flax.nn import sharding
from roberta_flax.nn.config import RobertaConfig
from roberta_flax.nn.forward import Params


def mesh_for(
    batch_size: int, *, data_parallel: int | None = None, tensor_parallel: int = 1, distributed: bool = False
) -> Mesh | None:
    """Returns a mesh of devices that share a run's batches, for FineTuning.run and Pretraining.run.

    Args:
      batch_size: number of rows that all devices compute together.
      data_parallel: number of devices that share the rows; the default is the number of devices divided by
        tensor_parallel.
      tensor_parallel: number of devices that share each layer.
      distributed: whether this process is one of several hosts (jax.distributed), whose devices are all used. If so,
        call this before anything else uses JAX's devices.

    Returns:
      The mesh; None for one device.

    Raises:
      InputError: there are fewer devices, they do not divide the batch size, or the hosts cannot connect.
    """
    if distributed:
        if data_parallel is not None:
            raise InputError("data_parallel is for one host; with distributed, all devices of all hosts are used")
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
        fewer = "" if distributed else ", or limit their number with data_parallel (--data-parallel)"
        raise InputError(
            f"batch_size (--batch-size) must be a multiple of the {parts} devices that share its rows, got "
            f"{batch_size}; change it{fewer}"
        )
    return mesh if mesh.size > 1 else None


def place(params: Params, config: RobertaConfig, mesh: Mesh | None, fully_sharded: bool) -> Params:
    """Returns parameters on the devices of a run; without a mesh, as they are."""
    return params if mesh is None else sharding.place(params, config, mesh, fully_sharded=fully_sharded)


def join_hosts() -> None:
    """Connects this process to those of the other hosts (jax.distributed).

    Raises:
      InputError: the hosts cannot connect.
    """
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"jax.distributed: {' '.join(str(error).split())[:300]}") from None
