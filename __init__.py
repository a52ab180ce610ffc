"""maskgym: Gymnasium environments whose episodes end in a mask."""

__version__ = "0.1.0"
