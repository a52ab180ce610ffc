"""Provide policies that segment what a user needs: backbones, need encoders and UserSal."""
