# SPDX-License-Identifier: Apache-2.0
"""Generated names of VMs: an adjective and an animal, such as `brisk-otter`."""

from __future__ import annotations

import random

_QUALITIES = (
    "able", "agile", "amber", "ample", "azure", "bold", "brave", "bright", "brisk", "calm", "candid",
    "clear", "clever", "cosy", "crisp", "curious", "daring", "deft", "eager", "early", "fair", "famous",
    "fine", "fleet", "fond", "fresh", "gentle", "glad", "golden", "grand", "happy", "hardy", "honest",
    "humble", "jolly", "keen", "kind", "lively", "lucky", "mellow", "merry", "mild", "modest", "neat",
    "nimble", "noble", "patient", "placid", "plucky", "polite", "proud", "quick", "quiet", "rapid",
    "ready", "rosy", "serene", "sharp", "silver", "sleek", "smart", "snug", "solid", "spry", "steady",
    "sunny", "swift", "tidy", "trusty", "upbeat", "vivid", "warm", "wise", "witty", "young", "zesty",
)  # fmt: skip
_ANIMALS = (
    "adder", "badger", "beaver", "bison", "bittern", "boar", "buzzard", "capercaillie", "chamois",
    "crane", "curlew", "deer", "dipper", "dormouse", "dunlin", "eagle", "eel", "egret", "falcon",
    "ferret", "finch", "fox", "gannet", "gecko", "goshawk", "grebe", "grouse", "gull", "hare",
    "harrier", "hawk", "hedgehog", "heron", "hornet", "ibex", "jackdaw", "jay", "kestrel", "kite",
    "lapwing", "lark", "linnet", "lizard", "lynx", "magpie", "marmot", "marten", "merlin", "mole",
    "moose", "mouse", "newt", "nuthatch", "oriole", "osprey", "otter", "owl", "perch", "pike", "pipit",
    "plover", "puffin", "raven", "redpoll", "robin", "rook", "salmon", "shrew", "siskin", "skylark",
    "snipe", "sparrow", "squirrel", "starling", "stoat", "stork", "swallow", "swan", "swift", "teal",
    "tern", "thrush", "trout", "vole", "weasel", "wigeon", "wolf", "wren",
)  # fmt: skip


def generate_name() -> str:
    """A name that is valid for a VM, one of some 7000."""
    return f"{random.choice(_QUALITIES)}-{random.choice(_ANIMALS)}"
