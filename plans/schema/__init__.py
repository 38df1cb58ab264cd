"""The records of a plan, with the meaning and the unit of every field.

Records are frozen and hold only integers, strings, booleans, tuples and records, so a plan is a value: two plans
are equal exactly when their canonical YAML is equal. Sizes are in bytes, times in ns, rates in 1/s; the unit is in
the name. ``Device.id`` is the only name by which other records refer to a device.

Each module is understood alone; everything is imported from here:

    plan        Plan, which has all of the following
    options     what was asked for
    devices     inventory: devices, hosts, links
    model       the base model in blocks
    drafter     the EAGLE head
    placement   stages, tables and drafter on devices, and their memory
    proof       proof of the step time, choice of the draft tree
    errors      PlanError

Shape letters used in them: H hidden size, D head dim, K KV heads, U MLP units of one layer, V vocabulary size.
"""

from plans.schema.devices import (
    Device,
    GroupSum,
    Host,
    Inventory,
    Link,
    MeasuredRates,
    Pair,
    ProductRates,
    ScoreTime,
    Together,
)
from plans.schema.drafter import AuxSource, Draft, HeadLayout
from plans.schema.errors import NewerSchemaError, PlanError
from plans.schema.model import (
    Activation,
    Attention,
    GateUpFormats,
    LayerClass,
    Mlp,
    Model,
    QkvFormats,
    QueryScaling,
    Rotary,
    Router,
    WeightFormat,
)
from plans.schema.options import DType, KvAxis, KvDType, Options, Pin, RoundedWeights, ScheduledTree, Strategy, Tree
from plans.schema.placement import (
    MEMORY_TERMS,
    DeviceMemory,
    DraftPlacement,
    MemoryTerm,
    Run,
    Stage,
    Transport,
    VocabSplit,
)
from plans.schema.plan import SCHEMA_MAJOR, SCHEMA_MINOR, Inputs, Plan
from plans.schema.proof import Proof, RunnerUp, ScheduledStep, Simplicity, Speculation

__all__ = [
    "MEMORY_TERMS",
    "SCHEMA_MAJOR",
    "SCHEMA_MINOR",
    "Activation",
    "Attention",
    "AuxSource",
    "DType",
    "Device",
    "DeviceMemory",
    "Draft",
    "DraftPlacement",
    "GateUpFormats",
    "GroupSum",
    "HeadLayout",
    "Host",
    "Inputs",
    "Inventory",
    "KvAxis",
    "KvDType",
    "LayerClass",
    "Link",
    "MeasuredRates",
    "MemoryTerm",
    "Mlp",
    "Model",
    "NewerSchemaError",
    "Options",
    "Pair",
    "Pin",
    "Plan",
    "PlanError",
    "ProductRates",
    "Proof",
    "QkvFormats",
    "QueryScaling",
    "Rotary",
    "RoundedWeights",
    "Router",
    "Run",
    "RunnerUp",
    "ScheduledStep",
    "ScheduledTree",
    "ScoreTime",
    "Simplicity",
    "Speculation",
    "Stage",
    "Strategy",
    "Together",
    "Transport",
    "Tree",
    "VocabSplit",
    "WeightFormat",
]
