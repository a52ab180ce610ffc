"""Reports: pages made from the files of finished runs."""
