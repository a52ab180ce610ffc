"""The User Need Digger: from photos to needs with masks, corrected by people (UserSOD, Eq. 1, Figure 5)."""
