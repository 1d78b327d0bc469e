"""What the subcommands that train share: options, the devices of a run, and which process speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from jax.sharding import Mesh

Remat = Annotated[bool, typer.Option("--remat", help="Less memory for a third more work.")]
DataParallel = Annotated[
    int | None, typer.Option(help="Devices that share a batch's rows. [default: all, but for --tensor-parallel]")
]
TensorParallel = Annotated[int, typer.Option(help="Devices that share each layer; the others divide the batch.")]
FullySharded = Annotated[
    bool, typer.Option("--fully-sharded", help="Divide parameters over the devices that divide the batch, too.")
]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="This is one of several hosts (jax.distributed), which share OUTPUT.")
]
Plot = Annotated[bool, typer.Option("--plot", help="Draw OUTPUT/curves.png at the end.")]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="Write OUTPUT/tensorboard.")]


def mesh_of(
    batch_size: int, tensor_parallel: int = 1, *, data_parallel: int | None = None, distributed: bool = False
) -> Mesh | None:
    """The devices that share the work; None for one.

    Args:
      batch_size: rows that all of them compute together.
      tensor_parallel: how many share each layer.
      data_parallel: how many share the rows; all, but for tensor_parallel, if not given.
      distributed: whether this process is one of several, whose devices all take part. Then nothing may have asked JAX
        for its devices before.

    Raises:
      InputError: numbers of devices that are not there, or that do not divide the rows; or the hosts do not meet.
    """
    import jax

    from roberta_flax.cli.batch import join_hosts
    from roberta_flax.errors import InputError
    from roberta_flax.nn import sharding

    if distributed:
        if data_parallel is not None:
            raise InputError("--data-parallel is for one host; with --distributed all devices of all hosts take part")
        join_hosts()
    devices = jax.devices()
    if data_parallel is not None:
        wanted = data_parallel * tensor_parallel
        if not 1 <= wanted <= len(devices):
            raise InputError(
                f"--data-parallel times --tensor-parallel is from 1 to the {len(devices)} devices here, got {wanted}"
            )
        devices = devices[:wanted]
    mesh = sharding.mesh(devices, tensor_parallel)
    parts = mesh.shape[sharding.DATA]
    if batch_size % parts:
        raise InputError(
            f"--batch-size must be a multiple of the {parts} devices that share its rows, got {batch_size}; change it, "
            "or say with --data-parallel how many do"
        )
    return mesh if mesh.size > 1 else None
