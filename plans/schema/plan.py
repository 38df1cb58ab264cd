"""The plan: all records together."""

from dataclasses import dataclass

from plans.schema.devices import Device, Inventory
from plans.schema.drafter import Draft
from plans.schema.model import Model
from plans.schema.options import Options
from plans.schema.placement import DeviceMemory, DraftPlacement, Stage, Transport, VocabSplit
from plans.schema.proof import Proof, Speculation

SCHEMA_MAJOR = 4
SCHEMA_MINOR = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Digests of the configs and of the tensor tables that were planned."""

    base_config_sha256: str
    base_tensors_sha256: str
    """SHA-256 of the sorted table of tensor names and shapes that the family derives; the same for a bare config."""
    draft_config_sha256: str | None
    draft_tensors_sha256: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The frozen answer."""

    schema: str
    inputs: Inputs
    options: Options
    inventory: Inventory
    model: Model
    draft: Draft | None
    stages: tuple[Stage, ...]
    embed: VocabSplit
    """Placement of the embedding table."""
    head: VocabSplit
    """Final norm, whole on each device of the group, and lm_head."""
    draft_placement: DraftPlacement | None
    message_transport: Transport
    """Transport of the group of all devices in use, for the step message."""
    memory: tuple[DeviceMemory, ...]
    """Memory of the devices in use, in the order of ``inventory.devices``."""
    proof: Proof
    speculation: Speculation | None = None
    """None: the tree, or none, was asked for."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The devices in use, in inventory order: rank r of a run is the r-th."""
        used = {entry.device for entry in self.memory}
        return tuple(device for device in self.inventory.devices if device.id in used)

    @property
    def placed(self) -> tuple[str, ...]:
        """Ids of the devices of stages, embedding, lm_head and drafter, in inventory order."""
        names = {device for stage in self.stages for device in stage.devices}
        names.update(self.embed.devices, self.head.devices)
        names.update(self.draft_placement.devices if self.draft_placement is not None else ())
        return tuple(device.id for device in self.inventory.devices if device.id in names)

    @property
    def transports(self) -> frozenset[Transport]:
        """Transports of all groups."""
        drafter, tables = self.draft_placement, (self.embed, self.head)
        stages = {transport for stage in self.stages for transport in (stage.transport, stage.hop_transport)}
        ends = {transport for split in tables for transport in (split.transport, split.hop_transport)}
        draft = {drafter.transport, drafter.feature_transport} if drafter else set()
        return frozenset({self.message_transport, *stages, *ends, *draft})

    def device(self, device_id: str) -> Device:
        return next(device for device in self.inventory.devices if device.id == device_id)
