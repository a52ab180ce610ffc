"""Ray: workers that train one agent, and actors that score its answers."""
