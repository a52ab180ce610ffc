"""Policies that segment what a user needs: backbones, need encoders, UserSal."""
