"""Networks: the world model and the agent that is trained inside it."""

from mow.models.actor_critic import Agent
from mow.models.growth import PER_MODULE, grow
from mow.models.router import Routing
from mow.models.world_model import Memory, WorldModel

__all__ = ["PER_MODULE", "Agent", "Memory", "Routing", "WorldModel", "grow"]
