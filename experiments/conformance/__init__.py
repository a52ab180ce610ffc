"""``maskgym check``: drive one part and name each rule of its contract that it breaks."""
