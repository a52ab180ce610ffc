"""REINFORCE for maskgym, on text and on clicks; importing this module registers both."""

from maskgym import agents

agents.register("reinforce", "maskgym_reinforce.text:Reinforce")
agents.register("reinforce_clicks", "maskgym_reinforce.clicks:ReinforceClicks")
